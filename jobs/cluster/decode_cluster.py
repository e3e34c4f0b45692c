"""Time per new token of one node and of ASTRA's ranks, on an emulated cluster: local and merged decoding in turns.

jobs/cluster/cluster.sh run 4 python jobs/cluster/decode_cluster.py MODEL.h5 [--tokens T] [--new N] [--rounds R]
MODEL.h5: a decoder with codebooks (astra-mpi init gpt2 ..). Prints milliseconds and ratios, then the same as JSON.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.device.threads import set_threads

WAYS = (("single", "local"), ("astra", "local"), ("astra", "merged"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=960, help="of the prompt (default %(default)s)")
    parser.add_argument("--new", type=int, default=32, help="new tokens per round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="ways take turns (default %(default)s)")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    set_threads(1)
    model = astra_mpi.load(args.model, comm=comm, strategy="single", weights="causal")
    strategies = {}
    for name in ("single", "astra"):
        model.use(name)
        strategies[name] = model.strategy
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, args.tokens))
    token_ms = np.empty((len(WAYS), args.rounds))
    first_ms = np.empty_like(token_ms)
    for r in range(-1, args.rounds):  # the first round warms up
        for w, (name, mode) in enumerate(WAYS):
            model.strategy = strategies[name]
            comm.Barrier()
            model.generate(ids, max_new_tokens=args.new, decode=mode)
            if r >= 0:
                found = model.report["generation"]
                token_ms[w, r], first_ms[w, r] = 1e3 * found["per_token_s"]["median"], 1e3 * found["first_token_s"]
    if comm.rank == 0:
        show(args, comm.size, token_ms, first_ms)


def show(args: argparse.Namespace, size: int, token_ms: np.ndarray, first_ms: np.ndarray) -> None:
    """Medians over rounds, and ratios to `single` as medians of the rounds' ratios."""
    rows = []
    for (name, mode), token, first in zip(WAYS, token_ms, first_ms, strict=True):
        rows.append(
            {
                "strategy": name,
                "decode": mode,
                "first_ms": round(float(np.median(first)), 1),
                "token_ms": round(float(np.median(token)), 2),
                "token_over_single": round(float(np.median(token / token_ms[0])), 3),
                "first_speedup": round(float(np.median(first_ms[0] / first)), 2),
            }
        )
    print(f"{args.tokens} + {args.new} tokens on {size} ranks; medians of {args.rounds} rounds in turns")
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(json.dumps({"tokens": args.tokens, "new": args.new, "ranks": size, "rows": rows}))


if __name__ == "__main__":
    main()
