"""Each CUDA kernel and whole ViT passes beside PyTorch and the ceilings of this GPU. One GPU, one process.

python jobs/bench/gpu_bench.py [--only TEXT] [--repeats 20] [--json PATH] [--small]
Times are medians between CUDA events, warm, over inputs in turn that together outgrow the second-level cache.
Ceilings are measured first: matrix products of cuBLAS in float32, TF32 and float16, and a copy in device memory. A
row's limit is the larger of its multiply-adds at one and its bytes at the other. Rivals need a PyTorch with CUDA;
without it their columns are empty. --small: tiny sizes, to see that everything runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from astra_mpi.files import whole

rng = np.random.default_rng(0)
#: inputs in turn take at least so many bytes together
_ROTATION = 256 << 20


class Case(NamedTuple):
    name: str
    make: Callable[[], tuple[Callable[[], Any], Callable[[], Any] | None]]  # inputs of its own -> ours, the rival's
    input_bytes: float
    multiply_adds: float
    ceiling: str  # of the multiply-adds: "float32", "tf32" or "float16"
    moved_bytes: float
    bar: str = ""


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype)


def torch_on_gpu() -> Any:
    """PyTorch if it can use this GPU, else None."""
    try:
        import torch

        return torch if torch.cuda.is_available() else None
    except ImportError:
        return None


class Bench:
    """Timing on one device; cp: CuPy."""

    def __init__(self, cp: Any, repeats: int, small: bool) -> None:
        from astra_mpi.kernels import cuda

        self.cp, self.kernels, self.repeats, self.small = cp, cuda, repeats, small
        self.torch = torch_on_gpu()

    def size(self, full: int, small: int) -> int:
        return small if self.small else full

    def ms(self, calls: list[Callable[[], Any]]) -> float:
        """Median milliseconds of a call; `calls` are the same on different inputs."""
        for call in calls:
            call()
        inner = 1 if self.small else max(1, round(2.0 / max(self._span(calls, len(calls)) / len(calls), 1e-3)))
        return float(np.median([self._span(calls, inner) / inner for _ in range(self.repeats)]))

    def _span(self, calls: list[Callable[[], Any]], n: int) -> float:
        start, end = self.cp.cuda.Event(), self.cp.cuda.Event()
        start.record()
        for i in range(n):
            calls[i % len(calls)]()
        end.record()
        end.synchronize()
        return float(self.cp.cuda.get_elapsed_time(start, end))

    def ceilings(self) -> dict[str, float]:
        """Multiply-adds per second by type, and bytes per second of a copy (read and written)."""
        cp, n = self.cp, self.size(8192, 64)
        found = {}
        linalg = cp._core._routines_linalg
        for name, dtype in (("float32", np.float32), ("tf32", np.float32), ("float16", np.float16)):
            a, b, out = (
                cp.asarray(normal(n, n, dtype=dtype)),
                cp.asarray(normal(n, n, dtype=dtype)),
                cp.empty((n, n), dtype),
            )
            how = linalg.COMPUTE_TYPE_TF32 if name == "tf32" else linalg.COMPUTE_TYPE_DEFAULT
            cp._core.set_compute_type(np.float32, how)
            found[name] = n**3 / (1e-3 * self.ms([lambda a=a, b=b, out=out: cp.matmul(a, b, out=out)]))
        cp._core.set_compute_type(np.float32, linalg.COMPUTE_TYPE_DEFAULT)
        source, target = (cp.empty(self.size(1 << 30, 1 << 10), np.uint8) for _ in range(2))

        def copy() -> None:
            target[:] = source

        found["copy"] = 2 * source.nbytes / (1e-3 * self.ms([copy]))
        return found

    def row(self, case: Case, ceilings: dict[str, float]) -> dict[str, Any]:
        copies = 1 if self.small else int(np.clip(_ROTATION // max(case.input_bytes, 1), 1, 16))
        made = [case.make() for _ in range(copies)]
        ours_ms = self.ms([ours for ours, _ in made])
        rivals = [rival for _, rival in made if rival is not None]
        rival_ms = self.ms(rivals) if rivals else None
        limit_ms = 1e3 * max(case.multiply_adds / ceilings[case.ceiling], case.moved_bytes / ceilings["copy"])
        return {
            "case": case.name,
            "ours_ms": ours_ms,
            "torch_ms": rival_ms,
            "ours_over_torch": None if rival_ms is None else ours_ms / rival_ms,
            "limit_ms": limit_ms,
            "of_limit": limit_ms / ours_ms,
            "bar": case.bar,
        }


def encode_cases(bench: Bench) -> Iterator[Case]:
    """Bar: 60% of the float32 (or TF32) ceiling, faster than GEMM and argmin in PyTorch."""
    n, width, size = bench.size(65536, 40), bench.size(768, 64), bench.size(1024, 70)
    for groups in (1, 32):

        def make(groups: int = groups) -> Any:
            x, entries = bench.cp.asarray(normal(n, width)), normal(groups, size, width // groups)
            norms = ((entries.astype(np.float64) ** 2).sum(axis=2) / 2).astype(np.float32)
            encode = bench.kernels.encode_grouped
            torch = bench.torch
            if torch is None:
                return lambda: encode(x, entries, norms), None
            rows = torch.from_dlpack(x).view(n, groups, -1).transpose(0, 1)  # (G, n, W)
            books = torch.from_numpy(entries).cuda().transpose(1, 2)  # (G, W, K)
            half = torch.from_numpy(norms).cuda()[:, None]
            return lambda: encode(x, entries, norms), lambda: (half - rows @ books).argmin(dim=2)

        work, moved = n * width * size, 4.0 * n * width
        yield Case(
            f"encode {n} x {width}, G={groups}/K={size}",
            make,
            moved,
            work,
            "float32",
            moved,
            ">= 0.6 of limit, < torch",
        )


def table_cases(bench: Bench) -> Iterator[Case]:
    """Bar: 70% of the copy's bandwidth, what is written counted, and codes read."""
    n, width = bench.size(12288, 40), bench.size(1536, 64)
    for dtype in (np.float32, np.float16):
        for n_codes, size in ((4, 256), (8, 256), (32, 1024)):

            def make(n_codes: int = n_codes, size: int = size, dtype: type = dtype) -> Any:
                tables = bench.cp.asarray(normal(n_codes, size, width, dtype=dtype))
                kind = np.uint8 if size <= 256 else np.uint16
                codes = bench.cp.asarray(rng.integers(0, size, (n, n_codes)).astype(kind))
                scale, bias = bench.cp.asarray(normal(n)), bench.cp.asarray(normal(width))
                ours = lambda: bench.kernels.table_sum(codes, tables, scale, bias)  # noqa: E731
                if bench.torch is None:
                    return ours, None
                far, books = bench.torch.from_dlpack(codes.astype(np.int64)), bench.torch.from_dlpack(tables)
                factor, shift = bench.torch.from_dlpack(scale)[:, None], bench.torch.from_dlpack(bias)
                return ours, lambda: sum(books[c][far[:, c]] for c in range(n_codes)) * factor + shift

            item = np.dtype(dtype).itemsize
            moved = float(item * n * width + n * n_codes)
            name = f"table sum {n} x {width}, C={n_codes}/K={size}, {np.dtype(dtype).name}"
            held = item * n_codes * size * width + moved
            yield Case(name, make, held, 0.0, "float32", moved, ">= 0.7 of limit")


def attention_cases(bench: Bench) -> Iterator[Case]:
    """Bar: within 1.5 of SDPA on dequantised keys; faster with counted keys."""
    heads, d, local, far, size = (
        bench.size(16, 2),
        64,
        bench.size(4096, 70),
        bench.size(12288, 130),
        bench.size(1024, 40),
    )
    for dtype in (np.float16, np.float32):
        for counted in (False, True):

            def make(dtype: type = dtype, counted: bool = counted) -> Any:
                return _attention(bench, heads, d, local, far, size, dtype, counted)

            name = f"attention {heads} x {local} x ({local} + {far}) x {d}, {np.dtype(dtype).name}"
            work = 2.0 * heads * local * (local + (size if counted else far)) * d
            held = float(np.dtype(dtype).itemsize * heads * d * (2 * local + 2 * far))
            bar = "< torch" if counted else "<= 1.5 torch"
            yield Case(name + ", counted" * counted, make, held, work, np.dtype(dtype).name, held, bar)


def _attention(
    bench: Bench, heads: int, d: int, local: int, far: int, size: int, dtype: type, counted: bool
) -> tuple[Callable[[], Any], Callable[[], Any] | None]:
    cp, kernels = bench.cp, bench.kernels
    q, kv = cp.asarray(normal(local, heads * d, dtype=dtype)), cp.asarray(normal(local, 2 * heads * d, dtype=dtype))
    table = cp.asarray(normal(size, 2 * heads * d, dtype=dtype))
    codes = cp.asarray(rng.integers(0, size, (far, 1)).astype(np.uint16))
    far_kv = table[codes[:, 0]]
    q_span, far_span = np.array([0, local]), np.array([0, far])
    device_span, table_span = cp.asarray(far_span), np.array([0, size])
    acc, row_max, row_sum = (cp.empty(local * heads * k, np.float32) for k in (d, 1, 1))
    out = cp.empty((local, heads * d), dtype)

    def ours() -> Any:
        acc[:], row_max[:], row_sum[:] = 0, -np.inf, 0
        state = acc, row_max, row_sum
        kernels.attend_packed(q, kv, (heads, heads), (q_span, q_span, None), None, None, None, *state)
        if counted:
            rows, bias, ends = kernels.distinct(codes, device_span, size)
            kernels.attend_packed(q, table, (heads, heads), (q_span, table_span, ends), bias, rows, None, *state)
        else:
            kernels.attend_packed(q, far_kv, (heads, heads), (q_span, far_span, None), None, None, None, *state)
        kernels.finish_packed(acc, row_sum, out, heads)
        return out

    torch = bench.torch
    if torch is None:
        return ours, None
    every = torch.cat([torch.from_dlpack(kv), torch.from_dlpack(far_kv)])
    keys, values = (part.view(-1, heads, d).transpose(0, 1)[None].contiguous() for part in every.chunk(2, dim=1))
    queries = torch.from_dlpack(q).view(local, heads, d).transpose(0, 1)[None].contiguous()
    return ours, lambda: torch.nn.functional.scaled_dot_product_attention(queries, keys, values, scale=1.0)


def decode_cases(bench: Bench) -> Iterator[Case]:
    """One new token per sequence beside what is kept, by PyTorch's SDPA on keys of its own layout."""
    heads, kv_heads, d = bench.size(32, 4), bench.size(8, 2), bench.size(128, 16)
    for batch, n_keys in ((1, bench.size(8192, 600)), (bench.size(16, 2), bench.size(8192, 40))):

        def make(batch: int = batch, n_keys: int = n_keys) -> Any:
            return _new_token(bench, (heads, kv_heads), d, batch, n_keys)

        moved = 2.0 * 2 * batch * n_keys * kv_heads * d
        work = 2.0 * batch * heads * n_keys * d
        name = f"new token, {batch} x {n_keys} keys, {heads} on {kv_heads} heads of {d}, float16"
        yield Case(name, make, moved, work, "float16", moved, "<= torch")


def _new_token(
    bench: Bench, heads: tuple[int, int], d: int, batch: int, n_keys: int
) -> tuple[Callable[[], Any], Callable[[], Any] | None]:
    cp, kernels = bench.cp, bench.kernels
    q = cp.asarray(normal(batch, heads[0] * d, dtype=np.float16) * np.float16(d**-0.5))
    kv = cp.asarray(normal(batch * n_keys, 2 * heads[1] * d, dtype=np.float16))
    spans = cp.asarray(n_keys * np.arange(batch)), cp.asarray(n_keys * np.arange(1, batch + 1))
    state, out = cp.empty((batch, heads[0] * (d + 2)), np.float32), cp.empty((batch, heads[0] * d), np.float16)

    def ours() -> Any:
        kernels.attend_new(q, kv, heads, spans, n_keys, None, None, state, True)
        kernels.finish_new(state, out, heads[0])
        return out

    torch = bench.torch
    if torch is None:
        return ours, None
    queries = torch.from_dlpack(q).view(batch, heads[0], 1, d)
    halves = torch.from_dlpack(kv).view(batch, n_keys, 2, heads[1], d).permute(2, 0, 3, 1, 4).contiguous()
    attend = torch.nn.functional.scaled_dot_product_attention
    return ours, lambda: attend(queries, *halves, scale=1.0, enable_gqa=heads[0] > heads[1])


def model_cases(bench: Bench) -> Iterator[Case]:
    """Bar: no slower than PyTorch eager in float16, the answer on the host in both."""
    from astra_mpi.convert.presets import preset_config, random_weights

    config = preset_config("vit-tiny" if bench.small else "vit-base", bench.size(1024, 16))
    config = dataclasses.replace(config, n_layers=bench.size(config.n_layers, 2))
    weights = random_weights(config, 0)
    tokens = config.grid[0] * config.grid[1] + 1
    per_token = 4 * config.d_model**2 + 2 * config.d_model * config.d_ff + 2 * tokens * config.d_model
    for batch in (1, bench.size(32, 2)):

        def make(batch: int = batch) -> Any:
            return _vit(bench, config, weights, batch)

        work = float(batch * tokens * config.n_layers * per_token)
        yield Case(
            f"ViT {config.d_model} wide, {tokens - 1} tokens, batch {batch}, float16",
            make,
            1e12,
            work,
            "float16",
            0.0,
            "<= torch",
        )


def _vit(bench: Bench, config: Any, weights: Any, batch: int) -> tuple[Callable[[], Any], Callable[[], Any] | None]:
    from mpi4py import MPI

    from astra_mpi.device.backend import get_backend
    from astra_mpi.engine import Model
    from astra_mpi.files.modelfile import ModelFile

    backend = get_backend("cuda", MPI.COMM_SELF, precision="float16")
    model = Model(ModelFile(config, weights), MPI.COMM_SELF, backend)
    model.use("single")
    images = normal(batch, config.channels, *config.image_size)
    if bench.torch is None:
        return lambda: model(images), None
    sys.path.insert(0, __file__.rsplit("/", 1)[0])
    from versus_torch import torch_twin

    twin = torch_twin(config, weights).half().cuda()
    tensor = bench.torch.from_numpy(images)

    def eager() -> Any:
        with bench.torch.inference_mode():
            return twin(tensor.cuda().half()).logits.float().cpu()

    return lambda: model(images), eager


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--repeats", type=int, default=20, help="default %(default)s")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    from mpi4py import MPI

    from astra_mpi.device.backend import get_backend
    from astra_mpi.errors import InputError

    try:
        backend = get_backend("cuda", MPI.COMM_SELF)
    except InputError as exc:
        print(f"gpu_bench: error: {exc}", file=sys.stderr)
        return 2
    bench = Bench(backend.xp, args.repeats, args.small)
    ceilings = bench.ceilings()
    print(f"{backend.choices['gpu']}: " + ", ".join(f"{k} {1e-12 * v:.3g} T/s" for k, v in ceilings.items()))
    print(f"{'case':<64}{'ours ms':>10}{'torch ms':>10}{'ratio':>8}{'limit ms':>10}{'of limit':>9}  bar")
    rows = []
    for cases in (encode_cases, table_cases, attention_cases, decode_cases, model_cases):
        for case in cases(bench):
            if args.only in case.name:
                rows.append(bench.row(case, ceilings))
                told = ["" if rows[-1][key] is None else f"{rows[-1][key]:.4g}" for key in list(rows[-1])[1:6]]
                print(
                    f"{case.name:<64}"
                    + "".join(f"{v:>{w}}" for v, w in zip(told, (10, 10, 8, 10, 9), strict=True))
                    + f"  {case.bar}",
                    flush=True,
                )
    if args.json:
        whole.write_text(
            args.json, json.dumps({"gpu": backend.choices["gpu"], "ceilings": ceilings, "rows": rows}, indent=2)
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
