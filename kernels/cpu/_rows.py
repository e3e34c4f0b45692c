"""Normalisation, rotation and activation: one pass over rows that stay in the first-level cache. Threads share the rows
where there are many numbers."""

import numpy as np

from astra_mpi.kernels._compile import Native, compiled
from astra_mpi.kernels.aligned import address
from astra_mpi.kernels.cpu import _team
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import FASTMATH, erf, exp, f32, i32
from astra_mpi.kernels.cpu._memory import float_rows, floats, longs

Array = np.ndarray

#: numbers from which on a second thread gains more than it costs to wake it
LEAST_SHARED = 1 << 16

ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3, "quick_gelu": 4}


#: what `_by_rows` is for
_LAYER_NORM, _RMS_NORM, _ADD, _SCALE_ADD, _ADD_LAYER_NORM, _ADD_RMS_NORM, _ROTATE, _MULTIPLY, _ACTIVATE = range(9)


#: which of the arrays each of them writes, if not the first one
_WRITTEN = {_LAYER_NORM: (1,), _RMS_NORM: (1,), _ADD_LAYER_NORM: (0, 2), _ADD_RMS_NORM: (0, 2)}
#: arrays and lines of any of them, at most
_ARRAYS, _LINES = 3, 3


def layer_norm(x: Array, weight: Array, bias: Array, eps: float, out: Array | None = None) -> Array:
    """(n, D): x (n, D) normalised; see reference.layer_norm."""
    out = np.empty(x.shape, np.float32) if out is None else out
    _by_rows(_LAYER_NORM, (np.ascontiguousarray(x), out), (weight, bias), eps=eps)
    return out


def rms_norm(x: Array, weight: Array, eps: float, out: Array | None = None) -> Array:
    """(n, D): x (n, D) over its root mean square; see reference.rms_norm."""
    out = np.empty(x.shape, np.float32) if out is None else out
    _by_rows(_RMS_NORM, (np.ascontiguousarray(x), out), (weight,), eps=eps)
    return out


def add_residual(x: Array, y: Array, bias: Array | None) -> Array:
    """x (n, D) += y + bias, in place; see reference.add_residual."""
    _by_rows(_ADD, (x, y), (_bias(bias, x),))
    return x


def scale_add(x: Array, scale: Array, bias: Array) -> Array:
    """x (n, D) = x * scale + bias, in place; see reference.scale_add."""
    _by_rows(_SCALE_ADD, (x,), (scale, bias))
    return x


def add_layer_norm(
    x: Array, y: Array, bias: Array | None, weight: Array, norm_bias: Array, eps: float, out: Array
) -> Array:
    """x (n, D) += y + bias, in place; out = layer_norm(x), may be y; see reference.add_layer_norm."""
    _by_rows(_ADD_LAYER_NORM, (x, y, out), (_bias(bias, x), weight, norm_bias), eps=eps)
    return out


def add_rms_norm(x: Array, y: Array, bias: Array | None, weight: Array, eps: float, out: Array) -> Array:
    """x (n, D) += y + bias, in place; out = rms_norm(x), may be y; see reference.add_rms_norm."""
    _by_rows(_ADD_RMS_NORM, (x, y, out), (_bias(bias, x), weight), eps=eps)
    return out


def rotate(x: Array, turns: Array, n_heads: int) -> Array:
    """Turn the first heads of x (n, W) by turns (n, d), in place; see reference.rotate."""
    _by_rows(_ROTATE, (x, turns), (), n_heads)
    return x


def activate_gated(x: Array, bias: Array | None, gate: Array, gate_bias: Array | None, name: str) -> Array:
    """x = (x + bias) * act(gate + gate_bias), in place; `gate` is overwritten; see reference.activate_gated."""
    activate(gate, gate_bias, name)
    _by_rows(_MULTIPLY, (x, gate), (_bias(bias, x),))
    return x


def activate(x: Array, bias: Array | None, name: str) -> Array:
    """x = act(x + bias) in place; see reference.activate."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}")
    _by_rows(_ACTIVATE, (x,), (_bias(bias, x),), ACTIVATIONS[name])
    return x


def _bias(bias, x):
    return np.zeros(x.shape[1], np.float32) if bias is None else bias


def _by_rows(
    kind: int, arrays: tuple[Array, ...], lines: tuple[Array, ...], number: int = 0, *, eps: float = 0.0
) -> None:
    """What `_rows` does with all rows of arrays (n, ..), the first of them those of x, and lines of one row."""
    for array in (*arrays, *lines):
        if array.dtype != np.float32 or array.strides[-1] != 4:
            _check_rows(array)
    for k in _WRITTEN.get(kind, (0,)):
        if not arrays[k].flags.writeable:
            raise ValueError("what is computed in place, or `out`, is read-only")
    (n, width), d = arrays[0].shape, arrays[-1].shape[1]
    places = [(address(array), array.strides[0]) for array in arrays] + [(0, 0)] * (_ARRAYS - len(arrays))
    given = *map(address, lines), *[0] * (_LINES - len(lines)), int(np.float32(eps).view(np.int32)), number
    whole = all(array.flags.c_contiguous for array in arrays)

    def share(index: int, count: int) -> tuple[int, ...]:
        first, last = n * index // count, n * (index + 1) // count
        rows = [number for at, stride in places for number in (at + first * stride, stride)]
        return kind, last - first, last - first if whole else 1, width, d, *rows, *given

    if arrays[0].size < LEAST_SHARED or _team.size() == 1:
        _rows(*share(0, 1))
    else:
        _team.run_native(_share, share)


def _check_rows(array: Array) -> None:
    apart = array.size and array.shape[-1] > 1 and array.strides[-1] != array.itemsize
    if array.dtype != np.float32 or apart:
        raise TypeError(f"{array.dtype} {array.shape}, {array.strides} bytes apart: rows of float32 are needed")


@Native
def _share(at, index, count):
    """`_rows` with numbers from an address on."""
    words = longs(at, 5 + 2 * _ARRAYS + _LINES + 2)
    head, of_arrays, of_lines = words[:5], words[5:11], words[11:14]
    _rows(
        head[0], head[1], head[2], head[3], head[4],
        of_arrays[0], of_arrays[1], of_arrays[2], of_arrays[3], of_arrays[4], of_arrays[5],
        of_lines[0], of_lines[1], of_lines[2], words[14], words[15],
    )  # fmt: skip
    return 1


@compiled(fastmath=FASTMATH, error_model="numpy")
def _rows(kind, n, step, width, d, a_at, lda, b_at, ldb, c_at, ldc, first_at, second_at, third_at, eps_bits, number):
    """A kernel of those below on n rows, `step` of which are contiguous, of arrays and lines at addresses."""
    first, second, third = floats(first_at, width), floats(second_at, width), floats(third_at, width)
    eps = i32(eps_bits).view(f32)
    for i in range(0, n, max(1, step)):
        a = float_rows(a_at + i * lda, step, width)
        b = float_rows(b_at + i * ldb, step, d)
        c = float_rows(c_at + i * ldc, step, width)
        if kind == _LAYER_NORM:
            _layer_norm(a, first, second, eps, b)
        elif kind == _RMS_NORM:
            _rms_norm(a, first, eps, b)
        elif kind == _ADD:
            _add_residual(a, b, first)
        elif kind == _SCALE_ADD:
            _scale_add(a, first, second)
        elif kind == _ADD_LAYER_NORM:
            _add_layer_norm(a, b, first, second, third, eps, c)
        elif kind == _ADD_RMS_NORM:
            _add_rms_norm(a, b, first, second, eps, c)
        elif kind == _ROTATE:
            _rotate(a, b, number)
        elif kind == _MULTIPLY:
            _multiply(a, first, b)
        else:
            _activate(a, first, number)


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


@inner(fastmath=FASTMATH)
def _scale_add(x, scale, bias):
    n, width = x.shape
    for i in range(n):
        row = x[i]
        for j in range(width):
            row[j] = row[j] * scale[j] + bias[j]


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
