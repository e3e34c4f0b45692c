"""Rows of activations as narrow products take them: rounded to bfloat16, or quantised to int8 by groups.

A panel of rows lies as rows do, or, for tiles of AMX, as tiles: of every sixteen rows the first 64 bytes of each, then
the next 64. Either way a line of 64 bytes is in one piece.
"""

import numpy as np
from numba import types
from numba.extending import overload

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import f32, i32
from astra_mpi.kernels.cpu._memory import floats, shorts, signed_bytes
from astra_mpi.kernels.cpu.products.layout import GROUP, ROUND, TINY, ZERO, to_bfloat16
from astra_mpi.kernels.cpu.products.lines import round_line

#: numbers of a line
_SHORTS, _BYTES = 32, 64
_TILE_ROWS = 16


def rows_of(tiles, at, row_bytes):
    """How the rows of a panel lie, for tiles of AMX or not: where they begin, and bytes from row to row, from line to
    line, and from sixteen rows to the next.
    """
    raise NotImplementedError


@overload(rows_of)
def _rows_of(tiles, at, row_bytes):
    if isinstance(tiles, types.NoneType):
        return lambda tiles, at, row_bytes: (at, row_bytes, 64, _TILE_ROWS * row_bytes)
    return lambda tiles, at, row_bytes: (at, 64, 64 * _TILE_ROWS, _TILE_ROWS * row_bytes)


@inner()
def row_at(rows, i):
    """Where row i begins."""
    return rows[0] + i // _TILE_ROWS * rows[3] + i % _TILE_ROWS * rows[1]


def narrow_rows(tiles, at, stride, n_rows, k, panel, factors, offsets):
    """Fill panel (>= n_rows, k_pad) from n_rows rows of k float32, `stride` bytes apart.

    tiles: as in `rows_of`. panel: uint16 (bfloat16) or int8, which tells the type. int8 takes GROUP numbers of a row
    at a time, and fills factors (groups, rows) float32, the largest magnitude over 127, and offsets (groups, rows)
    int32, 128 times the sum of the integers.
    """
    raise NotImplementedError


@overload(narrow_rows)
def _narrow_rows(tiles, at, stride, n_rows, k, panel, factors, offsets):
    def rounded(tiles, at, stride, n_rows, k, panel, factors, offsets):
        rows, k_pad = rows_of(tiles, panel.ctypes.data, panel.strides[0]), panel.shape[1]
        for i in range(n_rows):
            round_numbers(floats(at + i * stride, k), row_at(rows, i), rows[2], k_pad)

    def quantised(tiles, at, stride, n_rows, k, panel, factors, offsets):
        rows, k_pad = rows_of(tiles, panel.ctypes.data, panel.strides[0]), panel.shape[1]
        for i in range(n_rows):
            _quantise(floats(at + i * stride, k), row_at(rows, i), rows[2], k_pad, factors[:, i], offsets[:, i])

    return rounded if panel.dtype == types.uint16 else quantised


@compiled()
def round_part(rows, i, first, numbers):
    """Numbers `first` .. of row i, rounded; `first` is a multiple of 32, and zeros follow to the end of a line."""
    n_pad = (numbers.size + _SHORTS - 1) // _SHORTS * _SHORTS
    round_numbers(numbers, row_at(rows, i) + first // _SHORTS * rows[2], rows[2], n_pad)


@compiled()
def round_numbers(numbers, at, step, n_pad):
    """The lines at `at`, `step` bytes apart, of n_pad bfloat16: numbers rounded, then zeros."""
    n = numbers.size
    for first in range(0, n_pad, _SHORTS):
        line, width = shorts(at, _SHORTS), min(_SHORTS, n - first)
        if width == _SHORTS:
            round_line(at, numbers.ctypes.data + 4 * first)
        else:
            for j in range(_SHORTS):
                line[j] = to_bfloat16(numbers[first + j]) if j < width else np.uint16(0)
        at += step


@compiled(error_model="numpy")
def _quantise(numbers, at, step, k_pad, factors, offsets):
    """The lines at `at`, `step` bytes apart, of k_pad int8, and their factors and offsets."""
    for g in range(factors.size):
        group = numbers[GROUP * g : GROUP * (g + 1)]
        size = largest(group) / f32(127)
        inverse = f32(0) if size < TINY else f32(f32(1) / size)
        total = i32(0)
        for first in range(0, min(GROUP, k_pad - GROUP * g), _BYTES):
            total += _integers(group[first : first + _BYTES], inverse, signed_bytes(at, _BYTES))
            at += step
        factors[g] = f32(0) if size < TINY else f32(size + (size - size))  # NaN where a number is infinite
        offsets[g] = i32(i32(ZERO) * total)


@compiled()
def largest(numbers):
    """The largest magnitude, or NaN."""
    bits = numbers.view(np.int32)
    most = i32(0)
    for j in range(bits.size):  # as integers: NaN is above all numbers, and LLVM vectorises it
        most = max(most, i32(bits[j] & i32(0x7FFFFFFF)))
    return i32(most).view(f32)


@compiled()
def _integers(numbers, inverse, line):
    """Fill line with numbers times inverse, and zeros -> their sum."""
    total = i32(0)
    if numbers.size == _BYTES:
        for j in range(_BYTES):
            q = _integer(numbers[j] * inverse)
            line[j] = np.int8(q)
            total = i32(total + q)
    else:
        for j in range(_BYTES):
            q = _integer(numbers[j] * inverse) if j < numbers.size else i32(0)
            line[j] = np.int8(q)
            total = i32(total + q)
    return total


@inner()
def _integer(x):
    return i32(i32(f32(x + ROUND).view(np.int32)) - i32(0x4B400000))
