"""One input through ViT-Base (196 and 1024 patches) and MiniLM (256 tokens): this project, PyTorch and ONNX Runtime.

python jobs/peers/encoders.py WORK MINILM_FOLDER [--places core,node,10,100] [--encoders vit-196,vit-1024,minilm-256]
    [--rounds 5]
WORK: what get.sh and prepare.py have made. Places are those of measure.py: a core, a node, four nodes with links of so
many Mbit/s. At every place all take turns. ViT-Base has random weights and untrained codes, so only its times count.
Results are in WORK/cells/encoders.json, written after each pass; what is there is not measured again. page.py makes
the tables.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import numpy as np
from cells import EncoderCells
from contestants import NODES, of_encoder
from measure import CPU
from processes import Process, cluster, sent_bytes
from run_encoder import ENCODERS, make_files
from texts import prepare as prepare_texts

from astra_mpi.errors import AstraError

ALONE = ("core", "node")
LIMIT_S = 600.0  # of a pass


def measure(args: argparse.Namespace, encoder: str, places: list[str], results: EncoderCells) -> None:
    """What is not measured yet of one encoder, at places that are up together."""
    wanted = [
        (place, one)
        for place in places
        for one in of_encoder(encoder)
        if (one.nodes == 1) == (place in ALONE) and results.passes(place, encoder, one.name) < args.rounds
    ]
    exact, order = np.load(args.work / "files" / f"{encoder}-exact.npy")[0], np.random.default_rng(0)
    processes: list[Process] = []
    try:
        for place, one in wanted:
            processes.append(Process(args.work, one, place))
        for process in processes:
            process.ready()
            process.ask(0, 2, {}, LIMIT_S)  # which is not counted
        for _ in range(args.rounds):
            for i in order.permutation(len(wanted)):
                (place, one), cabled = wanted[i], places != ["core"]
                if results.passes(place, encoder, one.name) >= args.rounds:
                    continue
                before = sent_bytes() if cabled else 0
                answer = processes[i].ask(0, 1, {}, LIMIT_S)
                sent = sent_bytes() - before if cabled else 0
                said = results.add(place, encoder, one.name, answer=answer, sent=sent, exact=exact)
                print(f"{place:>5} {encoder:<11} {one.name:<20} {said}", flush=True)
        for process in processes:
            process.close()
    finally:
        for process in processes:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {"type": lambda text: text.split(",")}
    parser.add_argument("work", type=Path)
    parser.add_argument("folder", type=Path, help="of all-MiniLM-L6-v2")
    parser.add_argument("--places", **names, default=["core", "node", "10", "100"])
    parser.add_argument("--encoders", **names, default=list(ENCODERS), help=", ".join(ENCODERS))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    unknown = [name for name in args.encoders if name not in ENCODERS]
    if unknown:
        parser.error(f"no encoder is called {unknown[0]!r}; there are {', '.join(ENCODERS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("encoders: ended by a signal; the same command goes on"))
    args.work = args.work.resolve()
    (args.work / "cells").mkdir(exist_ok=True)
    sys.path.append(str(args.work / "python"))
    prepare_texts(args.work / "files", args.folder)
    for encoder in args.encoders:
        make_files(args.work / "files", args.folder, encoder)
    results = EncoderCells(args.work)
    if "core" in args.places:
        for encoder in args.encoders:
            measure(args, encoder, ["core"], results)
    nodes = [place for place in args.places if place == "node"]
    links = [place for place in args.places if place not in ALONE]
    if nodes or links:
        cluster("awake", os.getpid())
    for link in links or ["1000"] * len(nodes):
        cluster("up", NODES, link, CPU)
        try:
            for encoder in args.encoders:
                measure(args, encoder, [*nodes, *([link] if link in links else [])], results)
        finally:
            cluster("down")
        nodes = []  # one node's times do not depend on the link


if __name__ == "__main__":
    try:
        main()
    except (AstraError, TimeoutError) as error:
        sys.exit(f"encoders: {error}")
