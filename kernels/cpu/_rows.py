"""Normalisation, rotation and activation: one pass over rows that stay in the first-level cache."""

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._math import FASTMATH, erf, exp, f32

Array = np.ndarray

ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3, "quick_gelu": 4}


def layer_norm(x: Array, weight: Array, bias: Array, eps: float, out: Array | None = None) -> Array:
    """(n, D): x (n, D) normalised; see reference.layer_norm."""
    out = np.empty(x.shape, np.float32) if out is None else out
    _layer_norm(np.ascontiguousarray(x), weight, bias, f32(eps), out)
    return out


def rms_norm(x: Array, weight: Array, eps: float, out: Array | None = None) -> Array:
    """(n, D): x (n, D) over its root mean square; see reference.rms_norm."""
    out = np.empty(x.shape, np.float32) if out is None else out
    _rms_norm(np.ascontiguousarray(x), weight, f32(eps), out)
    return out


def add_residual(x: Array, y: Array, bias: Array | None) -> Array:
    """x (n, D) += y + bias, in place; see reference.add_residual."""
    _add_residual(x, y, _bias(bias, x))
    return x


def add_layer_norm(
    x: Array, y: Array, bias: Array | None, weight: Array, norm_bias: Array, eps: float, out: Array
) -> Array:
    """x (n, D) += y + bias, in place; out = layer_norm(x), may be y; see reference.add_layer_norm."""
    _add_layer_norm(x, y, _bias(bias, x), weight, norm_bias, f32(eps), out)
    return out


def add_rms_norm(x: Array, y: Array, bias: Array | None, weight: Array, eps: float, out: Array) -> Array:
    """x (n, D) += y + bias, in place; out = rms_norm(x), may be y; see reference.add_rms_norm."""
    _add_rms_norm(x, y, _bias(bias, x), weight, f32(eps), out)
    return out


def rotate(x: Array, turns: Array, n_heads: int) -> Array:
    """Turn the first heads of x (n, W) by turns (n, d), in place; see reference.rotate."""
    _rotate(x, turns, n_heads)
    return x


def activate_gated(x: Array, bias: Array | None, gate: Array, gate_bias: Array | None, name: str) -> Array:
    """x = (x + bias) * act(gate + gate_bias), in place; `gate` is overwritten; see reference.activate_gated."""
    activate(gate, gate_bias, name)
    _multiply(x, _bias(bias, x), gate)
    return x


def _bias(bias, x):
    return np.zeros(x.shape[1], np.float32) if bias is None else bias


def activate(x: Array, bias: Array | None, name: str) -> Array:
    """x = act(x + bias) in place; see reference.activate."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}")
    _activate(x, _bias(bias, x), ACTIVATIONS[name])
    return x


@compiled(fastmath=FASTMATH, error_model="numpy")
def _layer_norm(x, weight, bias, eps, out):
    n, width = x.shape
    for i in range(n):
        row, result = x[i], out[i]
        total = f32(0)
        for j in range(width):
            total += row[j]
        mean = total / f32(width)
        squares = f32(0)
        for j in range(width):
            squares += (row[j] - mean) * (row[j] - mean)
        factor = f32(1) / np.sqrt(squares / f32(width) + eps)
        for j in range(width):
            result[j] = (row[j] - mean) * factor * weight[j] + bias[j]


@compiled(fastmath=FASTMATH, error_model="numpy")
def _add_residual(x, y, bias):
    n, width = x.shape
    for i in range(n):
        row, other = x[i], y[i]
        for j in range(width):
            row[j] += other[j] + bias[j]


@compiled(fastmath=FASTMATH, error_model="numpy")
def _add_layer_norm(x, y, bias, weight, norm_bias, eps, out):
    for i in range(x.shape[0]):
        rows = slice(i, i + 1)
        _add_residual(x[rows], y[rows], bias)
        _layer_norm(x[rows], weight, norm_bias, eps, out[rows])


@compiled(fastmath=FASTMATH, error_model="numpy")
def _rms_norm(x, weight, eps, out):
    n, width = x.shape
    for i in range(n):
        row, result = x[i], out[i]
        squares = f32(0)
        for j in range(width):
            squares += row[j] * row[j]
        factor = f32(1) / np.sqrt(squares / f32(width) + eps)
        for j in range(width):
            result[j] = row[j] * factor * weight[j]


@compiled(fastmath=FASTMATH, error_model="numpy")
def _add_rms_norm(x, y, bias, weight, eps, out):
    for i in range(x.shape[0]):
        rows = slice(i, i + 1)
        _add_residual(x[rows], y[rows], bias)
        _rms_norm(x[rows], weight, eps, out[rows])


@compiled(fastmath=FASTMATH, error_model="numpy")
def _rotate(x, turns, n_heads):
    n, d_head = turns.shape
    half = d_head // 2
    for i in range(n):
        cos, sin = turns[i, :half], turns[i, half:]
        for h in range(n_heads):
            first = x[i, h * d_head : h * d_head + half]
            second = x[i, h * d_head + half : (h + 1) * d_head]
            for a in range(half):
                u, v = first[a], second[a]
                first[a] = u * cos[a] - v * sin[a]
                second[a] = v * cos[a] + u * sin[a]


@compiled(fastmath=FASTMATH, error_model="numpy")
def _multiply(x, bias, factor):
    n, width = x.shape
    for i in range(n):
        row, other = x[i], factor[i]
        for j in range(width):
            row[j] = (row[j] + bias[j]) * other[j]


@compiled(fastmath=FASTMATH, error_model="numpy")
def _activate(x, bias, kind):
    for i in range(x.shape[0]):
        activate_row(x[i], bias, kind)


@compiled(fastmath=FASTMATH, error_model="numpy")
def activate_row(row, bias, kind):
    """row = act(row + bias), in place; kind: one of ACTIVATIONS."""
    width = row.size
    if kind == 0:
        for j in range(width):
            y = row[j] + bias[j]
            row[j] = f32(0.5) * y * (f32(1) + erf(y * f32(0.7071067811865476)))
    elif kind == 1:
        for j in range(width):  # 0.5 (1 + tanh u) = 1 / (1 + exp(-2u)), u = sqrt(2/pi) (y + 0.044715 y^3)
            y = row[j] + bias[j]
            u = f32(0.7978845608028654) * (y + f32(0.044715) * y * y * y)
            row[j] = y / (f32(1) + exp(f32(-2) * u))
    elif kind == 2:
        for j in range(width):
            row[j] = max(row[j] + bias[j], f32(0))
    else:
        steepness = f32(1.702) if kind == 4 else f32(1)  # quick_gelu, silu
        for j in range(width):
            y = row[j] + bias[j]
            row[j] = y / (f32(1) + exp(-steepness * y))
