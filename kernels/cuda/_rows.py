"""Normalisation, activation, rotation and sums of rows (rows.cu)."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from astra_mpi.kernels.cuda._launch import ceil_div, launch, row_stride, vectors
from astra_mpi.kernels.cuda_source import options

Array = Any
ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3, "quick_gelu": 4}
_ROWS = 1024  # of a grid, over which rows go by stride


def layer_norm(x: Array, weight: Array, bias: Array, eps: float, out: Array | None = None) -> Array:
    """(n, D): x (n, D) normalised; see reference.layer_norm."""
    return _normalise(x, None, None, weight, bias, eps, out)


def rms_norm(x: Array, weight: Array, eps: float, out: Array | None = None) -> Array:
    """(n, D): x (n, D) over its root mean square; see reference.rms_norm."""
    return _normalise(x, None, None, weight, None, eps, out)


def add_layer_norm(
    x: Array, y: Array, bias: Array | None, weight: Array, norm_bias: Array, eps: float, out: Array
) -> Array:
    """x (n, D) += y + bias, in place; out = layer_norm(x), may be y; see reference.add_layer_norm."""
    return _normalise(x, y, bias, weight, norm_bias, eps, out)


def add_rms_norm(x: Array, y: Array, bias: Array | None, weight: Array, eps: float, out: Array) -> Array:
    """x (n, D) += y + bias, in place; out = rms_norm(x), may be y; see reference.add_rms_norm."""
    return _normalise(x, y, bias, weight, None, eps, out)


def _normalise(
    x: Array,
    y: Array | None,
    added: Array | None,
    weight: Array,
    norm_bias: Array | None,
    eps: float,
    out: Array | None,
) -> Array:
    out = cupy.empty(x.shape, x.dtype) if out is None else out
    n, width = x.shape
    if n == 0:
        return out
    how = options(x.dtype == np.float16, vectors(width, x, y, added, weight, norm_bias, out))
    y_row = np.int64(0) if y is None else row_stride(y)
    given = (x, row_stride(x), y, y_row, added, weight, norm_bias, np.float32(eps), out, row_stride(out))
    launch("rows", "normalise", (ceil_div(n, 4),), 128, (*given, np.int32(n), np.int32(width)), how)
    return out


def add_residual(x: Array, y: Array, bias: Array | None) -> Array:
    """x (n, D) += y + bias, in place; see reference.add_residual."""
    return _activate(x, y, bias, None, None, -1)


def scale_add(x: Array, scale: Array, bias: Array) -> Array:
    """x (n, D) = x * scale + bias, in place; see reference.scale_add."""
    x *= scale
    x += bias
    return x


def activate(x: Array, bias: Array | None, name: str) -> Array:
    """x = act(x + bias) in place; see reference.activate."""
    return _activate(x, None, bias, None, None, _kind(name))


def activate_gated(x: Array, bias: Array | None, gate: Array, gate_bias: Array | None, name: str) -> Array:
    """x = (x + bias) * act(gate + gate_bias), in place; see reference.activate_gated."""
    return _activate(x, None, bias, gate, gate_bias, _kind(name))


def _kind(name: str) -> int:
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}")
    return ACTIVATIONS[name]


def _activate(
    x: Array, add: Array | None, bias: Array | None, gate: Array | None, gate_bias: Array | None, kind: int
) -> Array:
    n, width = x.shape
    if x.size == 0:
        return x
    vector = vectors(width, x, add, bias, gate, gate_bias)
    how = options(x.dtype == np.float16, vector)
    add_row, gate_row = (np.int64(0) if a is None else row_stride(a) for a in (add, gate))
    given = (x, row_stride(x), add, add_row, bias, gate, gate_row, gate_bias, np.int32(kind), np.int32(n))
    grid = ceil_div(width, 512 if vector else 128), min(n, _ROWS)
    launch("rows", "activate", grid, 128, (*given, np.int32(width)), how)
    return x


def rotate(x: Array, turns: Array, n_heads: int) -> Array:
    """Turn the first heads of x (n, W) by turns (n, d) float32, in place; see reference.rotate."""
    n, d_head = turns.shape
    if n:
        given = (x, row_stride(x), turns, np.int32(n), np.int32(n_heads), np.int32(d_head))
        grid = ceil_div(n_heads * d_head // 2, 128), min(n, _ROWS)
        launch("rows", "rotate", grid, 128, given, options(x.dtype == np.float16))
    return x


def segment_sum(x: Array, starts: Array) -> Array:
    """(m, D) float32: sums of runs of rows of x (n, D); see reference.segment_sum."""
    from astra_mpi.device.xp import beside

    m, (n, width) = len(starts), x.shape
    out = cupy.empty((m, width), np.float32)
    given = (x, row_stride(x), beside(x, starts), out, np.int32(m), np.int32(n), np.int32(width))
    launch("rows", "segment_sum", (ceil_div(width, 128), min(m, _ROWS)), 128, given, options(x.dtype == np.float16))
    return out
