"""Normalisation, rotation and activation: one pass over rows that stay in the first-level cache. Threads share the rows
where there are many numbers."""

from collections.abc import Callable

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu import _team
from astra_mpi.kernels.cpu._math import FASTMATH, erf, exp, f32

Array = np.ndarray

#: numbers from which on a second thread gains more than it costs to wake it
LEAST_SHARED = 1 << 16

ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3, "quick_gelu": 4}


def by_rows(do: Callable[[slice], object], x: Array) -> None:
    """do(rows) for all rows of x (n, ..), each thread of the team on its part."""
    n = len(x)
    if _team.size() == 1 or x.size < LEAST_SHARED:
        do(slice(0, n))
    else:
        _team.run(lambda index, count: do(slice(n * index // count, n * (index + 1) // count)))


def layer_norm(x: Array, weight: Array, bias: Array, eps: float, out: Array | None = None) -> Array:
    """(n, D): x (n, D) normalised; see reference.layer_norm."""
    out = np.empty(x.shape, np.float32) if out is None else out
    x = np.ascontiguousarray(x)
    by_rows(lambda rows: _layer_norm(x[rows], weight, bias, f32(eps), out[rows]), x)
    return out


def rms_norm(x: Array, weight: Array, eps: float, out: Array | None = None) -> Array:
    """(n, D): x (n, D) over its root mean square; see reference.rms_norm."""
    out = np.empty(x.shape, np.float32) if out is None else out
    x = np.ascontiguousarray(x)
    by_rows(lambda rows: _rms_norm(x[rows], weight, f32(eps), out[rows]), x)
    return out


def add_residual(x: Array, y: Array, bias: Array | None) -> Array:
    """x (n, D) += y + bias, in place; see reference.add_residual."""
    constant = _bias(bias, x)
    by_rows(lambda rows: _add_residual(x[rows], y[rows], constant), x)
    return x


def add_layer_norm(
    x: Array, y: Array, bias: Array | None, weight: Array, norm_bias: Array, eps: float, out: Array
) -> Array:
    """x (n, D) += y + bias, in place; out = layer_norm(x), may be y; see reference.add_layer_norm."""
    constant = _bias(bias, x)
    by_rows(lambda rows: _add_layer_norm(x[rows], y[rows], constant, weight, norm_bias, f32(eps), out[rows]), x)
    return out


def add_rms_norm(x: Array, y: Array, bias: Array | None, weight: Array, eps: float, out: Array) -> Array:
    """x (n, D) += y + bias, in place; out = rms_norm(x), may be y; see reference.add_rms_norm."""
    constant = _bias(bias, x)
    by_rows(lambda rows: _add_rms_norm(x[rows], y[rows], constant, weight, f32(eps), out[rows]), x)
    return out


def rotate(x: Array, turns: Array, n_heads: int) -> Array:
    """Turn the first heads of x (n, W) by turns (n, d), in place; see reference.rotate."""
    by_rows(lambda rows: _rotate(x[rows], turns[rows], n_heads), x)
    return x


def activate_gated(x: Array, bias: Array | None, gate: Array, gate_bias: Array | None, name: str) -> Array:
    """x = (x + bias) * act(gate + gate_bias), in place; `gate` is overwritten; see reference.activate_gated."""
    activate(gate, gate_bias, name)
    constant = _bias(bias, x)
    by_rows(lambda rows: _multiply(x[rows], constant, gate[rows]), x)
    return x


def _bias(bias, x):
    return np.zeros(x.shape[1], np.float32) if bias is None else bias


def activate(x: Array, bias: Array | None, name: str) -> Array:
    """x = act(x + bias) in place; see reference.activate."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}")
    constant = _bias(bias, x)
    by_rows(lambda rows: _activate(x[rows], constant, ACTIVATIONS[name]), x)
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
