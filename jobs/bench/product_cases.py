"""Products of a ViT-Base block in bfloat16 and int8 for `kernel_bench.py`: beside PyTorch's, with weights that no cache
holds, and the speed of the instructions alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import cycle
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from astra_mpi.device.memory import OWN
from astra_mpi.device.packed import Packed, pack
from astra_mpi.kernels.cpu import _features, bfloat16, int8
from astra_mpi.kernels.cpu.products.avx512 import sweep
from astra_mpi.kernels.cpu.products.layout import STRIP, empty

D, D_FF = 768, 3072
#: (inputs, outputs) of queries, keys and values; attention's output; both layers of the MLP
LAYERS = ((D, 3 * D), (D, D), (D, D_FF), (D_FF, D))
#: blocks' weights that take turns: more than caches hold, in int8 too
_COPIES = 8

rng = np.random.default_rng(1)


class Products(NamedTuple):
    """All products of a block on so many rows, ours and the rival's."""

    name: str
    ours: Callable[[], Any]
    rival_name: str
    rival: Callable[[], Any]
    multiply_adds: float
    limit_s: float


def cases() -> Iterator[Products]:
    weights = [[rng.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5) for shape in LAYERS]]
    weights += [[weight.copy() for weight in weights[0]] for _ in range(_COPIES - 1)]
    for kernels, rival in ((bfloat16, _pytorch_bfloat16(weights)), (int8, _pytorch_int8(weights))):
        path = _features.path(kernels.compute).name
        if path in ("amx", "widened"):
            print(f"{kernels.compute}: path {path}; its instructions' speed alone is not measured")
        peak = 0.0 if path in ("amx", "widened") else peak_gflops(kernels.compute)
        if peak:
            print(f"{kernels.compute}: {path}, {peak:.0f} GFLOP/s from the second-level cache")
        packed = [[pack([weight], kernels, OWN) for weight in block] for block in weights]
        for rows in (1024, 256):
            inputs = [rng.standard_normal((rows, k), np.float32) for k, _ in LAYERS]
            work = float(rows * sum(k * n for k, n in LAYERS))
            limit_s = 2e-9 * work / peak if peak else 0.0
            name = f"{kernels.compute} products of a ViT-Base block, {rows} rows"
            yield Products(name, _ours(packed, inputs, kernels), "PyTorch", rival(inputs), work, limit_s)


def _ours(packed: list[list[Packed]], inputs: list[np.ndarray], kernels: ModuleType) -> Callable[[], Any]:
    """One block after another: layers with their biases, which is what the rival computes. The MLP's two are one call,
    as blocks call them."""
    outs = [np.empty((len(x), n), np.float32) for x, (_, n) in zip(inputs, LAYERS, strict=True)]
    biases, blocks = [np.zeros(n, np.float32) for _, n in LAYERS], cycle(packed)

    def call() -> Any:
        qkv, output, inner, outer = next(blocks)
        qkv.layer(inputs[0], outs[0], biases[0])
        output.layer(inputs[1], outs[1], biases[1])
        inner.layer_twice(inputs[2], outs[3], biases[2], "", None, None, outer, biases[3], False)
        return outs[-1]

    return call


def _pytorch_bfloat16(weights: list[list[np.ndarray]]) -> Callable[[list[np.ndarray]], Callable[[], Any]]:
    """Inputs and outputs in bfloat16, as its models have them: half of our bytes."""
    import torch

    tensors = [[torch.from_numpy(weight.T.copy()).bfloat16() for weight in block] for block in weights]
    biases = [torch.zeros(n, dtype=torch.bfloat16) for _, n in LAYERS]

    def on(inputs: list[np.ndarray]) -> Callable[[], Any]:
        rows, blocks = [torch.from_numpy(x).bfloat16() for x in inputs], cycle(tensors)

        def call() -> Any:
            with torch.inference_mode():
                *layers, outer = zip(next(blocks), biases, strict=True)
                for x, layer in zip(rows, layers, strict=False):
                    y = torch.nn.functional.linear(x, *layer)
                y = torch.nn.functional.linear(y, *outer)
            return y.float().numpy()

        return call

    return on


def _pytorch_int8(weights: list[list[np.ndarray]]) -> Callable[[list[np.ndarray]], Callable[[], Any]]:
    """Weights in int8, inputs quantised in the call."""
    import warnings

    import torch

    def quantised(weight: np.ndarray) -> Any:
        layer = torch.nn.Linear(*weight.shape)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer.weight.copy_(torch.from_numpy(weight.T))
            layer.bias.zero_()
            model = torch.nn.Sequential(layer)
            return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    layers = [[quantised(weight) for weight in block] for block in weights]

    def on(inputs: list[np.ndarray]) -> Callable[[], Any]:
        rows, blocks = [torch.from_numpy(x) for x in inputs], cycle(layers)

        def call() -> Any:
            with torch.inference_mode():
                *layers, outer = next(blocks)
                for x, layer in zip(rows, layers, strict=False):
                    y = layer(x)
                y = outer(y)
            return y.numpy()

        return call

    return on


def peak_gflops(kind: str, rows: int = 96, k: int = 256, n: int = 256) -> float:
    """10^9 operations per second of the innermost loop, on rows and strips that stay in the second-level cache."""
    strips = empty(kind, k, n)
    narrow, sums = (np.uint16, np.float32) if kind == "bfloat16" else (np.int8, np.int32)
    panel, totals = np.zeros((rows, k), narrow), np.zeros((rows, n), sums)
    words, ldb = strips.words.ctypes.data, 4 * STRIP * strips.n_words
    best_s = float("inf")
    for _ in range(300):
        begin = time.process_time()
        sweep(panel.ctypes.data, k * panel.itemsize, rows, words, ldb, strips.n_strips, totals, 0, strips.n_words, 1)
        best_s = min(best_s, time.process_time() - begin)
    return 2e-9 * rows * k * n / best_s
