"""Measures this project beside its peers: first token, further tokens, bytes on the wires, memory, answers.

python jobs/peers/measure.py WORK [--places core,node,10,100,1000] [--tokens 256,1024,4096] [--only ours-astra,torch-tp]
    [--repeats 3] [--new 17] [--limit 240]
WORK: what get.sh and prepare.py have made. Places: a core of this machine; a node (half a core) of the emulated cluster
(jobs/cluster/cluster.sh: root, Linux), and four such nodes with links of so many Mbit/s. At every place all take turns.
A cell (place, contestant, tokens) is a file in WORK/cells, written after each of its turns; what is there is not
measured again. A turn of more than half a minute is not repeated. One that would take longer than --limit seconds, by a
shorter prompt's time, is left out, and the cell says so. page.py makes tables and the chart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cell, predicted_s
from contestants import BY_NAME, CONTESTANTS, DLLAMA, NODES
from prepare import LENGTHS
from processes import Process, cluster, sent_bytes

from astra_mpi.errors import AstraError
from astra_mpi.files import whole

CPU = 0.5  # of a node, in cores
WARM = 64  # tokens of the turns that are not counted
PLACES = ("core", "node", "10", "100", "1000")
DLLAMA_VERSION = "dllama/version"  # which get.sh writes when it is built


class Eta:
    """By the seconds per token of the prompts so far."""

    def __init__(self, cells: list[Cell], repeats: int) -> None:
        self.left = sum(cell.tokens * (repeats - len(cell.read()["turns"])) for cell in cells)
        self.done, self.begin_s = 0, time.perf_counter()

    def after(self, tokens: int) -> str:
        self.done, self.left = self.done + tokens, self.left - tokens
        seconds = (time.perf_counter() - self.begin_s) / self.done * self.left
        return f"about {seconds / 60:.0f} min left here" if seconds > 90 else f"about {seconds:.0f} s left here"


def wanted(args: argparse.Namespace, place: str) -> list[Cell]:
    """What is not measured yet, shorter prompts first."""
    here = [one for one in CONTESTANTS if (one.nodes == 1) == (place in ("core", "node")) and one.name in args.only]
    cells = [Cell(args.work, place, one, tokens) for tokens in args.tokens for one in here]
    return [cell for cell in cells if not cell.done(args.repeats)]


def measure(args: argparse.Namespace, cells: list[Cell]) -> None:
    """Cells of places that are up together."""
    processes: dict[tuple[str, str], Process] = {}
    try:
        per_token: dict[Cell, float] = {}
        for cell in cells:
            key = (cell.place, cell.contestant.process)
            if key not in processes:
                processes[key] = Process(args.work, cell.contestant, cell.place)
        for process in processes.values():
            process.ready()
            print(f"{process.contestant.name} has loaded in {process.load_s:.0f} s", flush=True)
        for cell in {(cell.place, cell.contestant): cell for cell in cells}.values():
            bytes_of_token = warm(processes[cell.place, cell.contestant.process], cell, args)
            per_token |= {each: bytes_of_token for each in cells if each.contestant is cell.contestant}
        eta, order = Eta(cells, args.repeats), np.random.default_rng(0)
        for turn in range(args.repeats):
            for tokens in args.tokens:
                here = [cell for cell in cells if cell.tokens == tokens and len(cell.read()["turns"]) <= turn]
                for i in order.permutation(len(here)):
                    cell = here[i]
                    if not cell.done(args.repeats):
                        said = one_turn(processes[cell.place, cell.contestant.process], cell, args, per_token[cell])
                        print(f"{cell.place:>5} {cell.contestant.name:<20}{tokens:>6}  {said}; {eta.after(tokens)}",
                              flush=True)  # fmt: skip
        for process in processes.values():
            process.close()
    finally:
        for process in processes.values():
            process.kill()


def warm(process: Process, cell: Cell, args: argparse.Namespace) -> float:
    """-> bytes on the wires of a further token: what eight of them add to a turn."""
    sent = []
    for n_new in (1, 1, 9):
        before = 0 if cell.place == "core" else sent_bytes()
        process.ask(WARM, n_new, cell.contestant.call, args.limit)
        sent.append(0 if cell.place == "core" else sent_bytes() - before)
    return max(0, sent[2] - sent[1]) / 8


def one_turn(process: Process, cell: Cell, args: argparse.Namespace, bytes_of_token: float) -> str:
    """Into the cell's file -> a line about it."""
    expected_s = predicted_s(cell)
    if expected_s is not None and expected_s > args.limit:
        cell.write(left_out=expected_s)
        return f"left out: it would take {expected_s:.0f} s"
    before = 0 if cell.place == "core" else sent_bytes()
    try:
        answer = process.ask(cell.tokens, args.new, cell.contestant.call, 4 * args.limit)
    except TimeoutError:
        cell.write(left_out=4 * args.limit)  # so that the same command goes on with the others
        raise
    sent = 0 if cell.place == "core" else sent_bytes() - before
    names = ("first_s", "first_cpu_s", "token_s", "token_cpu_s")
    turn = {name: answer[name] for name in names}
    turn["first_bytes"] = sent - bytes_of_token * (args.new - 1)
    told = {"answer": answer["tokens"], "peak_bytes": answer["peak_bytes"], "load_s": process.load_s}
    cell.write(turns=[*cell.read()["turns"], turn], new=args.new, token_bytes=bytes_of_token, **told)
    return f"{turn['first_s']:.2f} s, then {1e3 * turn['token_s']:.1f} ms"


def built(work: Path, names: list[str]) -> list[str]:
    """Without distributed-llama where get.sh had no sources of it."""
    there = (work / DLLAMA_VERSION).exists()
    kept = [name for name in names if there or BY_NAME[name].peer != DLLAMA]
    if kept != names:
        print("distributed-llama is left out; get.sh builds it with DLLAMA=FOLDER of its sources", flush=True)
    return kept


def machine(work: Path) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    llama = next(work.glob("llama_cpp_python-*"), Path("?")).name.rpartition("-")[2]
    versions = {name: metadata.version(name) for name in ("numpy", "numba", "torch", "transformers")}
    given = {DLLAMA: version.read_text().strip()} if (version := work / DLLAMA_VERSION).exists() else {}
    return {
        "cpu": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?"),
        "cores": len(os.sched_getaffinity(0)),
        "features": [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if f in flags],
        "system": platform.system(),
        "versions": versions | {"llama-cpp-python": llama} | given,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {"type": lambda text: text.split(",")}
    parser.add_argument("work", type=Path)
    parser.add_argument("--places", **names, default=list(PLACES))
    parser.add_argument("--tokens", type=lambda text: sorted(map(int, text.split(","))), default=list(LENGTHS))
    parser.add_argument("--only", **names, default=list(BY_NAME), help=", ".join(BY_NAME))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new", type=int, default=17, help="tokens after a prompt (default %(default)s)")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds of a turn (default %(default)s)")
    args = parser.parse_args()
    unknown = [name for name in args.only if name not in BY_NAME]
    if unknown:
        parser.error(f"no contestant is called {unknown[0]!r}; there are {', '.join(BY_NAME)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("measure: ended by a signal; the same command goes on"))
    args.work = args.work.resolve()
    args.only = built(args.work, args.only)
    (args.work / "cells").mkdir(exist_ok=True)
    whole.write_text(args.work / "cells" / "machine.json", json.dumps(machine(args.work), indent=1) + "\n")
    if "core" in args.places and (cells := wanted(args, "core")):
        measure(args, cells)
    nodes = wanted(args, "node") if "node" in args.places else []
    links = [place for place in args.places if place not in ("core", "node")]
    if nodes or links:
        cluster("awake", os.getpid())
    for link in links or (["1000"] if nodes else []):
        cells = [*nodes, *(wanted(args, link) if link in links else [])]
        nodes = []  # one node's times do not depend on the link
        if cells:
            on_cluster(args, link, cells)


def on_cluster(args: argparse.Namespace, link: str, cells: list[Cell]) -> None:
    print(f"== {NODES} nodes of {CPU} cores, links of {link} Mbit/s: {len(cells)} cells", flush=True)
    cluster("up", NODES, link, CPU)
    try:
        measure(args, cells)
    finally:
        cluster("down")


if __name__ == "__main__":
    try:
        main()
    except (AstraError, TimeoutError) as error:
        sys.exit(f"measure: {error}")
