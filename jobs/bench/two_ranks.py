"""Two ranks of this machine sharing one forward pass, over two that each run it whole at the same time, A B A B.

mpirun -n 2 python jobs/bench/two_ranks.py MODEL.h5 [--codebooks A.h5,B.h5] [--pairs 7] [--json PATH]
`single` runs on every rank at once, so that both cores are busy in both halves of a pair. A pair's speed-up is the mean
time of those runs over the shared pass. Counted keys are off. Prints medians, quartiles and the operation-count limit
W / (W / P + encoding). Any number of ranks works, but more ranks than cores say nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.engine import Model
from astra_mpi.files import whole


def limit(model: Model, n_tokens: int) -> float:
    """Speed-up of `model.comm.size` ranks by multiply-adds alone, tables and exchange free."""
    d, size = model.config.d_model, model.comm.size
    d_ff = model.config.d_ff
    block = n_tokens * d * (4 * d + 2 * d_ff) + 2 * n_tokens**2 * d
    encode = 0
    assert model.codec is not None
    for block_codec in model.codec.blocks:
        for book in block_codec.codebooks:
            searched = book.searched.size
            encode += n_tokens / size * (searched + (0 if book.basis is None else book.basis.size))
    work = model.config.n_layers * block
    return work / (work / size + encode)


def lap(comm: MPI.Comm, call: Callable[[], Any], op: MPI.Op) -> float:
    comm.Barrier()
    start = time.perf_counter()
    call()
    return comm.allreduce(time.perf_counter() - start, op)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model file")
    parser.add_argument("--codebooks", help="codebook files, instead of the codebooks in the model")
    parser.add_argument("--pairs", type=int, default=7, help="default %(default)s")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    alone = astra_mpi.load(args.model, comm=MPI.COMM_SELF, strategy="single")
    inputs, _ = random_batch(alone.config, 1)
    n_tokens = int(alone.family.prepare(inputs).lengths[0])
    rows = []
    for codebooks in args.codebooks.split(",") if args.codebooks else [None]:
        shared = astra_mpi.load(args.model, comm=comm, strategy="astra", codebooks=codebooks, counted_keys=False)
        for model in (alone, shared):
            model(inputs)
        laps = np.array(
            [
                (lap(comm, lambda: alone(inputs), MPI.SUM) / comm.size, lap(comm, lambda m=shared: m(inputs), MPI.MAX))
                for _ in range(args.pairs)
            ]
        )
        ratios = laps[:, 0] / laps[:, 1]
        rows.append(
            {
                "codebooks": codebooks or args.model,
                "codec": shared.report["codec"],
                "single_ms": round(1e3 * float(np.median(laps[:, 0])), 1),
                "shared_ms": round(1e3 * float(np.median(laps[:, 1])), 1),
                "speedup": round(float(np.median(ratios)), 3),
                "quartiles": [round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.75))],
                "limit": round(limit(shared, n_tokens), 3),
                "distinct_keys": shared.report["distinct_keys"],
            }
        )
    if comm.rank == 0:
        print(f"{comm.size} ranks, {n_tokens} tokens, medians of {args.pairs} pairs")
        heads = f"{'single ms':>10}{'shared ms':>10}{'speed-up':>9}{'quartiles':>16}{'limit':>8}{'keys':>6}"
        print(f"{'codebooks':<40}{heads}")
        for row in rows:
            low, high = row["quartiles"]
            print(
                f"{row['codebooks']:<40}{row['single_ms']:>10.1f}{row['shared_ms']:>10.1f}{row['speedup']:>8.2f}x"
                f"{f'{low:.2f}..{high:.2f}':>16}{row['limit']:>7.2f}x{row['distinct_keys']:>6.0f}"
            )
        if args.json:
            whole.write_text(args.json, json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
