"""What strategy "auto" chooses on this cluster beside what is measured to be fastest of the exact strategies.

jobs/cluster/cluster.sh up 4 10 0.5
jobs/cluster/cluster.sh run 4 python jobs/cluster/auto_cluster.py MODEL.h5 [--tokens 512]
    [--new-tokens 16] [--json FILE]
Without --new-tokens forward passes are timed; with it, a prompt and what follows it, decoded alone. A row of the table
of docs/explanation/planner.md, and with --json everything. Model:
`python jobs/cluster/auto_cluster.py --make MODEL.h5` writes one of the shape of SmolLM2-135M with 10 of its 30 blocks;
`astra-mpi init gpt2 MODEL.h5 --no-codebooks` another.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.presets import random_model
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import write_model
from astra_mpi.job.generation import seconds
from astra_mpi.models.llama import LlamaConfig
from astra_mpi.planner.auto import EXACT, hint


def make(path: str) -> None:
    """Random weights: latency does not depend on them."""
    config = LlamaConfig(576, 9, 3, 10, 1536, "silu", 1e-5, 49152, 2048)
    write_model(Path(path), random_model(config, None, seed=0))


def measured_s(model: Model, ids: np.ndarray, n_new: int, repeats: int) -> float:
    """The median; of a generation without its head's first use."""
    totals = []
    for i in range(1 + repeats):
        model.comm.Barrier()
        if n_new:
            model.generate(ids, max_new_tokens=n_new, decode="local")
            total_s = seconds(model.report["generation"])
        else:
            model(ids)
            total_s = model.report["latency_s"]["total"]
        if i:
            totals.append(total_s)
    return float(np.median(totals))


def measure(args: argparse.Namespace, comm: MPI.Comm) -> dict[str, Any]:
    load: dict[str, Any] = dict(comm=comm, tokens=args.tokens, new_tokens=args.new_tokens)
    choices = [astra_mpi.load(args.model, **load).chosen for _ in range(args.choices)]
    model = astra_mpi.load(args.model, comm=comm, strategy="single")
    ids, _ = random_batch(model.config, 1, args.tokens)
    found = {}
    for name in args.strategies.split(","):
        if model.obstacle(name) or (args.new_tokens and name == "tp"):
            continue
        model.use(name)
        found[name] = measured_s(model, ids, args.new_tokens, args.repeats)
    return {"choices": choices, "measured_s": found}


def row(args: argparse.Namespace, found: dict[str, Any]) -> str:
    """| new tokens | chosen | fastest | predicted and measured of each | probe |"""
    choice, measured = found["choices"][0], found["measured_s"]
    exact = {name: s for name, s in measured.items() if name in EXACT}
    names = sorted({choice["strategy"] for choice in found["choices"]})
    times = ", ".join(f"{name} {s:.3g} ({choice['predicted_s'].get(name, np.nan):.3g})" for name, s in measured.items())
    link, probes = choice["network"], [1e3 * choice["probe_s"] for choice in found["choices"]]
    return (
        f"| {args.tokens} + {args.new_tokens} | {link['bandwidth_bps'] / 1e6:.3g}, {1e3 * link['rtt_s']:.2g} |"
        f" {', '.join(names)} | {min(exact, key=lambda name: exact[name])} | {times} | {np.median(probes):.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="model file of a decoder without codebooks")
    parser.add_argument("--make", metavar="PATH", help="write a model, and nothing else")
    parser.add_argument("--tokens", type=int, default=512, help="default %(default)s")
    parser.add_argument("--new-tokens", type=int, default=0, help="default none")
    timed = ",".join([*EXACT, "sp:kv:int8"])
    parser.add_argument("--strategies", default=timed, metavar="A,B", help="timed (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default %(default)s")
    parser.add_argument("--choices", type=int, default=5, help="how often it is asked (default %(default)s)")
    parser.add_argument("--json", type=Path, help="everything, appended as a line")
    args = parser.parse_args()
    if args.make:
        make(args.make)
        return
    comm = MPI.COMM_WORLD
    found = measure(args, comm)
    if comm.Get_rank() == 0:
        print(row(args, found))
        print(hint(found["choices"][0], "--strategy "))
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
