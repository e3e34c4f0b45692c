"""Each CPU kernel beside its rival and its physical limit, one thread, A B A B, medians of CPU seconds.

python jobs/bench/kernel_bench.py [--pairs 15] [--only TEXT] [--json PATH]
Rivals: PyTorch (attention, normalisation, activation, products in bfloat16 and int8), faiss' ProductQuantizer
(encoding), the projection GEMM (table sums). The limit is the larger of multiply-adds at the speed of a large float32
GEMM and bytes at the speed of a copy of 4 MiB, which the last-level cache holds, both measured first; of products in
bfloat16 and int8, it is the speed of their instructions. Of tables only the result is counted, not what is read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from product_cases import cases as product_cases_of_a_block

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.tables import Norm, Projection, make_far
from astra_mpi.device.threads import set_threads
from astra_mpi.files import whole
from astra_mpi.kernels import cpu

rng = np.random.default_rng(0)
D, D_FF, REMOTE = 768, 3072, 768


class Case(NamedTuple):
    name: str
    ours: Callable[[], Any]
    rival_name: str
    rival: Callable[[], Any]
    multiply_adds: float  # what the limit counts
    moved_bytes: float
    bar: str = ""  # what the ratio of ours over the rival's time should be
    agree: Callable[[Any, Any], bool] | None = None
    limit_s: float = 0  # where it is not that of float32


class Limits(NamedTuple):
    multiply_adds_per_s: float
    bytes_per_s: float

    def time_s(self, case: Case) -> float:
        return case.limit_s or max(case.multiply_adds / self.multiply_adds_per_s, case.moved_bytes / self.bytes_per_s)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def lap(call: Callable[[], Any], least_s: float = 0.02) -> Callable[[], float]:
    """A function that times `call` once, as the mean of enough calls to fill `least_s`."""
    call()
    start = time.process_time()
    call()
    count = max(1, round(least_s / max(time.process_time() - start, 1e-7)))

    def once() -> float:
        start = time.process_time()
        for _ in range(count):
            call()
        return (time.process_time() - start) / count

    return once


def limits() -> Limits:
    a, b, out = normal(1024, D), normal(D, D_FF), np.empty((1024, D_FF), np.float32)
    gemm = lap(lambda: np.matmul(a, b, out=out))
    source, target = normal(1 << 20), np.empty(1 << 20, np.float32)
    copy = lap(lambda: np.copyto(target, source))
    gemm_s, copy_s = min(gemm() for _ in range(9)), min(copy() for _ in range(9))
    return Limits(1024 * D * D_FF / gemm_s, 2 * source.nbytes / copy_s)


def attention_cases() -> Iterator[Case]:
    import torch

    for heads, queries, keys, d, bar in (
        (12, 256, 1024, 64, "<= 1.10"),
        (12, 1025, 1025, 64, ""),
        (12, 32, 128, 32, ""),
    ):
        q, k, v = normal(heads, queries, d), normal(heads, keys, d), normal(heads, keys, d)
        q_scaled = q * np.float32(d**-0.5)
        acc, row_max, row_sum = np.empty_like(q), np.empty((heads, queries), "f4"), np.empty((heads, queries), "f4")
        out = np.empty((queries, heads * d), np.float32)

        def ours(q=q_scaled, k=k, v=v, acc=acc, row_max=row_max, row_sum=row_sum, out=out) -> np.ndarray:
            acc[:], row_max[:], row_sum[:] = 0, -np.inf, 0
            cpu.attend(q, k, v, None, None, acc, row_max, row_sum)
            cpu.finish(acc, row_sum, out)
            return out

        tensors = [torch.from_numpy(a)[None] for a in (q, k, v)]

        def sdpa(tensors=tensors) -> np.ndarray:
            with torch.inference_mode():
                return torch.nn.functional.scaled_dot_product_attention(*tensors)[0].transpose(0, 1).flatten(1).numpy()

        work = 2.0 * heads * queries * keys * d
        yield Case(f"attention {heads} x {queries} x {keys} x {d}", ours, "PyTorch SDPA", sdpa, work, 0, bar, close)


def encode_cases() -> Iterator[Case]:
    import faiss

    faiss.omp_set_num_threads(1)
    x = normal(256, D)
    for groups, size, bar in ((1, 1024, "<= 1.05"), (16, 1024, "< 1"), (32, 1024, "< 1"), (32, 256, "< 1")):
        book = Codebook("grouped", normal(groups, size, D // groups), D)
        rival = faiss.ProductQuantizer(D, groups, size.bit_length() - 1)
        faiss.copy_array_to_vector(book.entries.ravel(), rival.centroids)
        name = f"encode 256 x {D}, G={groups}/K={size}"
        yield Case(
            name, lambda b=book: b.encode(x, cpu), "faiss", lambda r=rival: r.compute_codes(x), 256.0 * D * size, 0, bar
        )


def subspace_cases() -> Iterator[Case]:
    x = normal(256, D)
    basis = np.linalg.qr(normal(D, D))[0]
    for kind, n_codes, size, width, bar in (
        ("grouped", 1, 1024, 128, "<= 0.4"),
        ("grouped", 1, 256, 128, ""),
        ("residual", 8, 256, 176, ""),
    ):
        entries = normal(n_codes, size, D)
        exact = Codebook(kind, entries, D)
        narrow = Codebook(kind, entries, D, basis=basis[:, :width])
        name = f"encode 256 x {D}, {'G=1' if kind == 'grouped' else 'M=8'}/K={size}, subspace of {width}"
        work = 256.0 * width * (D + n_codes * size)
        yield Case(name, lambda b=narrow: b.encode(x, cpu), "exact", lambda b=exact: b.encode(x, cpu), work, 0, bar)


def table_cases() -> Iterator[Case]:
    norm = Norm(True, normal(D), normal(D), 1e-6)
    projection = Projection(norm, normal(D, 2 * D) / np.float32(D**0.5), normal(2 * D))
    for kind, n_codes, size, bar in (
        ("grouped", 1, 1024, "<= 0.02"),
        ("residual", 4, 256, ""),
        ("residual", 8, 256, "<= 0.2"),
        ("grouped", 16, 256, "<= 0.4"),
        ("grouped", 32, 256, ""),
    ):
        width = D if kind == "residual" else D // n_codes
        codec = BlockCodec((Codebook(kind, normal(n_codes, size, width), D),))
        codes = rng.integers(0, size, (REMOTE, n_codes)).astype(np.uint8 if size <= 256 else np.uint16)
        table, gemm = (make_far(how, codec, "hidden", projection) for how in ("table", "gemm"))
        name = f"[K|V] of {REMOTE} codes, {'M' if kind == 'residual' else 'G'}={n_codes}/K={size}"
        yield Case(
            name,
            lambda t=table, c=codes: t.far_kv(c, cpu),
            "LayerNorm + GEMM",
            lambda g=gemm, c=codes: g.far_kv(c, cpu),
            0,
            4.0 * REMOTE * 2 * D,
            bar,
            lambda a, b: close(a, b, 1e-3),
        )


def row_cases() -> Iterator[Case]:
    import torch

    x, weight, bias = normal(1025, D), normal(D), normal(D)
    out = np.empty_like(x)
    tensors = [torch.from_numpy(a) for a in (x, weight, bias)]
    yield Case(
        f"LayerNorm 1025 x {D}",
        lambda: cpu.layer_norm(x, weight, bias, 1e-6, out),
        "PyTorch",
        lambda: torch.nn.functional.layer_norm(tensors[0], (D,), tensors[1], tensors[2], 1e-6).numpy(),
        0,
        2.0 * x.nbytes,
        "",
        close,
    )
    inner, inner_bias = normal(1025, D_FF), normal(D_FF) * np.float32(1e-3)
    for name, approximate in (("gelu", "none"), ("gelu_tanh", "tanh")):
        mine, theirs = inner.copy(), torch.from_numpy(inner.copy())
        yield Case(
            f"bias + {name} 1025 x {D_FF}",
            lambda m=mine, n=name: cpu.activate(m, inner_bias, n),
            "PyTorch",
            lambda t=theirs, a=approximate: torch.nn.functional.gelu(t + torch.from_numpy(inner_bias), approximate=a),
            0,
            2.0 * inner.nbytes,
        )


def product_cases() -> Iterator[Case]:
    for case in product_cases_of_a_block():
        name, ours, rival_name, rival, work, limit_s = case
        tolerance = 0.02 if name.startswith("bfloat16") else 0.06  # of the largest; both round, each in its way
        agree = partial(close, tolerance=tolerance)
        yield Case(name, ours, rival_name, rival, work, 0, "<= 1.00", agree, limit_s)


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-4) -> bool:
    return bool(np.allclose(a, b, atol=tolerance * max(1.0, float(np.abs(b).max()))))


def measure(case: Case, limit: Limits, pairs: int) -> dict[str, Any]:
    """Medians in milliseconds, of ours and the rival in turn; the ratio is the median over pairs."""
    if case.agree is not None and not case.agree(case.ours(), case.rival()):
        raise SystemExit(f"{case.name}: differs from {case.rival_name}")
    ours, rival = lap(case.ours), lap(case.rival)
    laps = np.array([(ours(), rival()) for _ in range(pairs)])
    mine_s, rival_s = np.median(laps, axis=0)
    return {
        "kernel": case.name,
        "ours_ms": round(1e3 * float(mine_s), 4),
        "rival": case.rival_name,
        "rival_ms": round(1e3 * float(rival_s), 4),
        "ratio": round(float(np.median(laps[:, 0] / laps[:, 1])), 4),
        "bar": case.bar,
        "limit_ms": round(1e3 * limit.time_s(case), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="default %(default)s")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    import torch

    set_threads(1)
    torch.set_num_threads(1)
    limit = limits()
    print(f"GEMM {2e-9 * limit.multiply_adds_per_s:.1f} GFLOP/s, copy {1e-9 * limit.bytes_per_s:.1f} GB/s")
    print(f"{'kernel':<50}{'ours ms':>9}{'rival ms':>10} {'rival':<17}{'ratio':>7}  {'bar':<9}{'limit ms':>9}")
    rows = []
    for cases in (attention_cases, encode_cases, subspace_cases, table_cases, row_cases, product_cases):
        for case in cases():
            if args.only in case.name:
                row = measure(case, limit, args.pairs)
                rows.append(row)
                print(
                    f"{row['kernel']:<50}{row['ours_ms']:>9.3f}{row['rival_ms']:>10.3f} {row['rival']:<17}"
                    f"{row['ratio']:>7.3f}  {row['bar']:<9}{row['limit_ms']:>9.3f}",
                    flush=True,
                )
    if args.json:
        whole.write_text(args.json, json.dumps({"limits": limit._asdict(), "kernels": rows}, indent=2))


if __name__ == "__main__":
    main()
