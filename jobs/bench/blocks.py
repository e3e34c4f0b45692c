"""How fast weights in blocks are multiplied: one row against reading the bytes, many against float32.

python jobs/bench/blocks.py [--mib 160] [--rounds 9] [--json FILE]
Per kind of block: GB/s of one int8 and one float32 row with `mib` MiB of weights, which no cache holds, and of a plain
read of the same bytes; 10^9 operations per second of 4, 16 and 1024 int8 rows with a layer of 576 x 1536, rounding of
rows included, beside NumPy's float32 product with the layer as an array. One thread; CPU seconds, the best of rounds
that take turns. A read that shares a core with other programs takes longer than these seconds say it should; compare
within a run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from astra_mpi.device.threads import set_threads
from astra_mpi.files import whole
from astra_mpi.kernels import cpu
from astra_mpi.kernels.blocks import BLOCK_KINDS, RECORDS

WIDE, LAYER = 4096, (576, 1536)


def weights(kind: str, k: int, n: int) -> np.ndarray:
    records = np.zeros((n // 16, k // 32), RECORDS[kind])
    records["factor"] = 2.0**-6
    records["numbers"] = np.random.default_rng(0).integers(1, 256, records["numbers"].shape[2:])
    return records.view(np.uint8).reshape(*records.shape, -1)


def best(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of each."""
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds + 1):  # the first one warms up
        for name, call in calls.items():
            begin = time.process_time()
            call()
            found[name] = min(found[name], time.process_time() - begin)
    return found


def one_row(kind: str, mib: int, rounds: int) -> dict[str, float]:
    """GB/s."""
    n = (mib << 20) * 16 // RECORDS[kind].itemsize // (WIDE // 32) // 32 * 32
    stored = weights(kind, WIDE, n)
    x, out = np.random.default_rng(1).standard_normal((1, WIDE), np.float32), np.empty((1, n), np.float32)
    numbers = stored.reshape(-1).view(np.uint64)
    calls: dict[str, Callable[[], object]] = {
        "int8": lambda: cpu.multiply_blocks(kind, cpu.quantise_rows(x), stored, out),
        "float32": lambda: cpu.times_blocks(kind, x, stored, out),
        "read": numbers.max,
    }
    return {name: stored.nbytes / 1e9 / seconds for name, seconds in best(calls, rounds).items()}


def many_rows(kind: str, m: int, rounds: int) -> dict[str, float]:
    """10^9 operations per second."""
    k, n = LAYER
    stored, wide = weights(kind, k, n), np.ones(LAYER, np.float32)
    x, out = np.random.default_rng(1).standard_normal((m, k), np.float32), np.empty((m, n), np.float32)
    laps = max(1, 2048 // m)

    def repeated(call: Callable[[], object]) -> Callable[[], object]:
        return lambda: [call() for _ in range(laps)]

    calls = {
        "int8": repeated(lambda: cpu.multiply_blocks(kind, cpu.quantise_rows(x), stored, out)),
        "BLAS": repeated(lambda: np.matmul(x, wide, out=out)),
    }
    return {name: 2e-9 * m * k * n * laps / seconds for name, seconds in best(calls, rounds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=160, help="of weights for one row (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="default %(default)s")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    set_threads(1)
    found = {}
    for kind in BLOCK_KINDS:
        row = one_row(kind, args.mib, args.rounds)
        many = {m: many_rows(kind, m, args.rounds) for m in (4, 16, 1024)}
        found[kind] = {"one_row_gb_s": row, "gflop_s": many}
        told = ", ".join(f"{name} {speed:.1f}" for name, speed in row.items())
        print(f"{kind}: one row, GB/s: {told} ({row['int8'] / row['read']:.0%} of the read)")
        for m, speeds in many.items():
            print(f"  {m} rows, GFLOP/s: int8 {speeds['int8']:.0f}, BLAS float32 {speeds['BLAS']:.0f}")
    if args.json:
        whole.write_text(Path(args.json), json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
