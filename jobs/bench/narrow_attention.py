"""Attention, search and far keys in bfloat16 beside float32's kernels, and attention beside PyTorch's in bfloat16.

python jobs/bench/narrow_attention.py [--pairs 15] [--json PATH]
One thread, CPU time, in turns, least times of each. The peak is that of the instruction that multiplies, measured on
factors in the first-level cache; a share of it counts attention's two products alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.tables import Norm, Projection, make_far
from astra_mpi.device.threads import set_threads
from astra_mpi.files import whole
from astra_mpi.kernels import cpu
from astra_mpi.kernels.aligned import aligned
from astra_mpi.kernels.cpu import bfloat16
from astra_mpi.kernels.cpu.dense import encode
from astra_mpi.kernels.cpu.flash.calls import tiles_of, used_path
from astra_mpi.kernels.cpu.flash.tiles import multiply

D = 768
rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def least_ms(calls: dict[str, Callable[[], Any]], laps: int) -> dict[str, float]:
    """The least CPU time of each, in turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(laps + 1):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - begin)
    return {name: 1e3 * seconds for name, seconds in best.items()}


def peak_gflops(laps: int) -> float:
    """Of products of one row, again and again, with two strips of 128 words: all factors stay in the cache."""
    n_rows, words = 4800, 128
    a, b = aligned((32 * words * 4,)), aligned((2 * words * 64,))
    sums, tiles = np.zeros((n_rows, 32), np.float32), tiles_of(used_path())
    arguments = a.ctypes.data, 0, n_rows, b.ctypes.data, 64 * words, 2, sums, words, 1
    return 2e-6 * n_rows * 32 * 2 * words / least_ms({"": lambda: multiply(tiles, *arguments)}, laps)[""]


def attention(heads: int, queries: int, keys: int, d: int) -> dict[str, Callable[[], Any]]:
    import torch

    q, k, v = normal(heads, queries, d), normal(heads, keys, d), normal(heads, keys, d)
    scaled, acc = q * np.float32(d**-0.5), np.empty_like(q)
    row_max, row_sum = np.empty((2, heads, queries), np.float32)

    def ours(kernels: Any) -> Callable[[], None]:
        def attend() -> None:
            acc[:], row_max[:], row_sum[:] = 0, -np.inf, 0
            kernels.attend(scaled, k, v, None, None, acc, row_max, row_sum)

        return attend

    tensors = [torch.from_numpy(z)[None].bfloat16() for z in (q, k, v)]

    def sdpa() -> None:
        with torch.inference_mode():
            torch.nn.functional.scaled_dot_product_attention(*tensors)

    return {"bfloat16": ours(bfloat16), "float32": ours(cpu), "PyTorch bfloat16": sdpa}


def search(kind: str, n_codes: int, size: int) -> dict[str, Callable[[], Any]]:
    x, book = normal(256, D), Codebook(kind, normal(n_codes, size, D if kind == "residual" else D // n_codes), D)
    step = 0 if kind == "residual" else D // n_codes

    def in_float32() -> np.ndarray:
        return encode.search_tiles(np.array(x), step, book.searched, book.half_norms)

    if not np.array_equal(book.encode(x, cpu), in_float32()):
        raise SystemExit("codes differ")
    return {"bfloat16": lambda: book.encode(x, cpu), "float32": in_float32}


def far(n_codes: int, size: int) -> dict[str, Callable[[], Any]]:
    norm = Norm(True, normal(D), normal(D), 1e-6)
    codec = BlockCodec((Codebook("residual", normal(n_codes, size, D), D),))
    projection = Projection(norm, normal(D, 2 * D) / np.float32(D**0.5), normal(2 * D))
    codes = rng.integers(0, size, (768, n_codes)).astype(np.uint8 if size <= 256 else np.uint16)
    wide, halved = (make_far("table", codec, "hidden", projection) for _ in range(2))
    halved.halve()
    return {"bfloat16": lambda: halved.far_kv(codes, bfloat16), "float32": lambda: wide.far_kv(codes, cpu)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="default %(default)s")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    import torch

    set_threads(1)
    torch.set_num_threads(1)
    peak = peak_gflops(args.pairs)
    print(f"path {used_path()}, peak {peak:.0f} GFLOP/s")
    rows = []
    shapes = (12, 1024, 1024, 64), (12, 256, 1024, 64), (12, 256, 256, 64), (12, 32, 128, 32), (12, 1, 1024, 64)
    cases = {f"attention {' x '.join(map(str, shape))}": (attention(*shape), shape) for shape in shapes}
    cases["encode 256 x 768, G=1/K=1024"] = search("grouped", 1, 1024), None
    cases["encode 256 x 768, M=4/K=256"] = search("residual", 4, 256), None
    cases["[K|V] of 768 codes, M=4/K=256"] = far(4, 256), None
    for name, (calls, shape) in cases.items():
        ms = least_ms(calls, args.pairs)
        share = 4e-6 * np.prod(shape) / ms["bfloat16"] / peak if shape else None
        rows.append({"kernel": name, "ms": ms, "share_of_peak": share})
        times = ", ".join(f"{who} {value:.3f} ms" for who, value in ms.items())
        print(f"{name:<32} {times}" + (f", {100 * share:.0f}% of the peak" if share else ""), flush=True)
    if args.json:
        whole.write_text(args.json, json.dumps({"path": used_path(), "peak_gflops": peak, "kernels": rows}, indent=2))


if __name__ == "__main__":
    main()
