"""A random trace of bandwidth over time for `--network trace:FILE`: CSV with time_s, mbps.

python jobs/bench/make_trace.py trace.csv [--seconds 600] [--low 20] [--high 100] [--levels 9] [--stay 0.6] [--seed 0]
A Markov chain over evenly spaced levels: every second it stays with probability STAY, else it moves to the level above
or below, and at the ends to the only one there is.
"""

from __future__ import annotations

import argparse

import numpy as np

from astra_mpi.files import whole


def markov(n: int, levels: np.ndarray, stay: float, seed: int) -> np.ndarray:
    """(n,) of `levels`, begun anywhere with equal chance."""
    rng = np.random.default_rng(seed)
    at, path = int(rng.integers(len(levels))), np.empty(n)
    for i in range(n):
        path[i] = levels[at]
        if rng.random() >= stay and len(levels) > 1:
            step = 1 if at == 0 else -1 if at == len(levels) - 1 else int(rng.choice((-1, 1)))
            at += step
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="CSV file to write")
    parser.add_argument("--seconds", type=float, default=600, help="length (default %(default)s)")
    parser.add_argument("--step", type=float, default=1, help="seconds that a bandwidth holds (default %(default)s)")
    parser.add_argument("--low", type=float, default=20, help="Mbps (default %(default)s)")
    parser.add_argument("--high", type=float, default=100, help="Mbps (default %(default)s)")
    parser.add_argument("--levels", type=int, default=9, help="bandwidths from LOW to HIGH (default %(default)s)")
    parser.add_argument("--stay", type=float, default=0.6, help="probability of no change (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (0 < args.low <= args.high and args.levels >= 1 and 0 <= args.stay <= 1 and args.step > 0):
        parser.error("bandwidths and steps are above 0, LOW at most HIGH, and STAY is a probability")
    n = round(args.seconds / args.step)
    if n < 2:
        parser.error("a trace has two steps or more: raise --seconds")
    mbps = markov(n, np.linspace(args.low, args.high, args.levels), args.stay, args.seed)
    rows = [f"{i * args.step:g},{rate:g}\n" for i, rate in enumerate(mbps)]
    whole.write_text(args.output, "".join(["time_s,mbps\n", *rows]))
    print(f"{args.output}: {n} steps of {args.step:g} s, mean {mbps.mean():.1f} Mbps")


if __name__ == "__main__":
    main()
