"""What threads gain: one model with each number of threads, in turns.

python jobs/bench/threads.py MODEL.h5 [--threads 1,2] [--compute bfloat16] [--tokens 1024] [--new-tokens 0] [--rounds 9]
One input of `tokens` tokens (a ViT: one image) and, of decoders, `new-tokens` after it. Prints medians in milliseconds
by the clock, and how many times less each number of threads takes than the first one, the median over rounds. Cores
that do other work make threads wait for each other: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.threads import set_threads
from astra_mpi.engine import Model

#: what is timed
_NAMES = "pass", "token"


def timed(model: Model, inputs: np.ndarray, n_new: int) -> tuple[float, float]:
    """Milliseconds of a pass, and of a further token after it: the median."""
    begin_s = time.perf_counter()
    model(inputs)
    passed_ms = 1e3 * (time.perf_counter() - begin_s)
    if not n_new:
        return passed_ms, np.nan
    model.generate(inputs, max_new_tokens=1 + n_new)
    return passed_ms, 1e3 * model.report["generation"]["per_token_s"]["median"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--compute", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--new-tokens", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    model = astra_mpi.load(args.model, comm=MPI.COMM_SELF, strategy="single", compute=args.compute, threads=1)
    inputs, _ = random_batch(model.config, 1, None if model.config.family == "vit" else args.tokens)
    laps: dict[int, list[tuple[float, float]]] = {n: [] for n in args.threads}
    for _ in range(1 + args.rounds):  # the first one warms up
        for n in args.threads:
            set_threads(n)
            model(inputs)  # new threads make their buffers
            laps[n].append(timed(model, inputs, args.new_tokens))
    first = np.array(laps[args.threads[0]][1:])
    for n in args.threads:
        ms = np.array(laps[n][1:])  # (rounds, 2)
        gains = np.median(first / ms, axis=0)
        cells = [
            f"{name} {np.median(of):.1f} ms, {gain:.2f}x" for name, of, gain in zip(_NAMES, ms.T, gains, strict=True)
        ]
        print(f"{args.model} {args.compute}, {n} threads: {'; '.join(cells[: 1 + bool(args.new_tokens)])}", flush=True)


if __name__ == "__main__":
    main()
