"""A linear layer on a panel of rows in one go: products, scales, bias, activation, gate and residual sum, while the
panel's sums are in the cache; and two layers in a row, between which nothing leaves it.

Everything here is compiled and works on addresses; `calls.py` has what Python calls.
"""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._math import f32
from astra_mpi.kernels.cpu._memory import floats, shorts
from astra_mpi.kernels.cpu._rows import activate_row
from astra_mpi.kernels.cpu.products import amx, avx512
from astra_mpi.kernels.cpu.products.layout import GROUP_WORDS, STRIP, to_bfloat16
from astra_mpi.kernels.cpu.products.rows import narrow_rows

#: words multiplied before the next strips: two strips of them, and the panel's part, stay in the cache
_WORDS, _TILE_WORDS = 768, 384

SET, ADD, BFLOAT16 = 0, 1, 2
#: literal numbers and unsigned addresses would have functions compiled once more for them
i64 = np.int64


class Layer(NamedTuple):
    """Addresses and sizes of a layer (k, n), gated or not."""

    strips: int  # of `Strips.words`
    scale: int  # (n_pad,) float32
    bias: int  # (n,) float32
    gate: int  # strips of the gate (k, n); 0: none
    gate_scale: int
    gate_bias: int
    activation: int  # of the layer, or of its gate; -1: none
    k: int
    n: int
    n_words: int  # of an output


class Rows(NamedTuple):
    """Rows of float32 somewhere: how many, and where they lie."""

    at: int
    stride: int  # bytes
    n: int


class Room(NamedTuple):
    """What one thread works in. The type of `panel` is that of the products."""

    panel: np.ndarray  # (r, k_pad) uint16 bfloat16, or int8
    sums: np.ndarray  # (r, columns at a time) float32
    gate_sums: np.ndarray
    counts: np.ndarray  # (r, columns at a time) int32, of a group of int8
    factors: np.ndarray  # (groups, r) float32 of int8 rows
    offsets: np.ndarray  # (groups, r) int32
    line: np.ndarray  # (columns at a time,) float32
    gate_line: np.ndarray
    zeros: np.ndarray  # (columns at a time,)


def multiply(tiles, panel, room, n_rows, strips, n_words, n_strips, sums):
    """sums[:n_rows, : 16 n_strips] = panel @ n_strips strips from the address `strips`, but for the columns' scale.

    tiles: of AMX, or None. panel: of the room; its type is that of the products.
    """
    raise NotImplementedError


@overload(multiply)
def _multiply_of(tiles, panel, room, n_rows, strips, n_words, n_strips, sums):
    def floats(tiles, panel, room, n_rows, strips, n_words, n_strips, sums):
        _multiply_floats(tiles, panel, n_rows, strips, n_words, n_strips, sums)

    def integers(tiles, panel, room, n_rows, strips, n_words, n_strips, sums):
        _multiply_integers(tiles, room, n_rows, strips, n_words, n_strips, sums)

    return floats if panel.dtype == types.uint16 else integers


@compiled()
def _multiply_floats(tiles, panel, n_rows, strips, n_words, n_strips, sums):
    step = _WORDS if tiles is None else _TILE_WORDS
    for w in range(0, n_words, step):
        sweep_words(
            tiles, panel, n_rows, strips, n_words, n_strips, w, min(step, n_words - w), sums, 1 if w == 0 else 0
        )


@compiled()
def _multiply_integers(tiles, room, n_rows, strips, n_words, n_strips, sums):
    """Exact sums of each group of inputs, times the factor that a row has in it."""
    n = STRIP * n_strips
    for w in range(0, n_words, GROUP_WORDS):
        words = min(GROUP_WORDS, n_words - w)
        sweep_words(tiles, room.panel, n_rows, strips, n_words, n_strips, w, words, room.counts, 1)
        factors, offsets = room.factors[w // GROUP_WORDS], room.offsets[w // GROUP_WORDS]
        for i in range(n_rows):
            counts, row, factor, offset = room.counts[i, :n], sums[i, :n], factors[i], offsets[i]
            if w == 0:
                for j in range(n):
                    row[j] = f32(counts[j] - offset) * factor
            else:
                for j in range(n):
                    row[j] += f32(counts[j] - offset) * factor


@compiled()
def sweep_words(tiles, panel, n_rows, strips, n_words, n_strips, word, words, sums, begin):
    """sums (+)= `words` words of the panel from `word` on @ those of the strips."""
    row_bytes, a, b = panel.strides[0], panel.ctypes.data + 4 * word, strips + 4 * STRIP * word
    if tiles is None:
        avx512.sweep(a, row_bytes, n_rows, b, 4 * STRIP * n_words, n_strips, sums, 0, words, begin)
    else:
        amx.sweep(tiles, a, row_bytes, n_rows, b, 4 * STRIP * n_words, n_strips, sums, 0, words, begin)


@compiled()
def columns(tiles, layer, room, n_rows, first, last, out, stride, mode):
    """Outputs first .. last (multiples of 32, or the end) of the panel's rows, to rows `stride` bytes apart at `out`.

    mode: SET or ADD float32, or BFLOAT16.
    """
    strip_bytes, width = 4 * STRIP * layer.n_words, room.sums.shape[1]
    for j in range(first, last, width):
        n = min(width, last - j)
        n_strips = 2 * ((n + 2 * STRIP - 1) // (2 * STRIP))
        strips = (j // STRIP) * strip_bytes
        multiply(tiles, room.panel, room, n_rows, layer.strips + strips, layer.n_words, n_strips, room.sums)
        if layer.gate != 0:
            multiply(tiles, room.panel, room, n_rows, layer.gate + strips, layer.n_words, n_strips, room.gate_sums)
        for i in range(n_rows):
            at = out + i * stride + (2 if mode == BFLOAT16 else 4) * j
            line = floats(at, n) if mode == SET else room.line[:n]
            _finish_row(layer, room, i, j, line)
            if mode == ADD:
                row = floats(at, n)
                for c in range(n):
                    row[c] += line[c]
            elif mode == BFLOAT16:
                halves = shorts(at, n)
                for c in range(n):
                    halves[c] = to_bfloat16(line[c])


@compiled()
def _finish(row, scale, bias, line):
    for j in range(line.size):
        line[j] = row[j] * scale[j] + bias[j]


@compiled()
def _finish_row(layer, room, i, j, line):
    """line = outputs j .. of row i, from its sums."""
    n = line.size
    scale, bias = floats(layer.scale + 4 * j, n), floats(layer.bias + 4 * j, n)
    _finish(room.sums[i], scale, bias, line)
    if layer.gate != 0:
        gate = room.gate_line[:n]
        scale, bias = floats(layer.gate_scale + 4 * j, n), floats(layer.gate_bias + 4 * j, n)
        _finish(room.gate_sums[i], scale, bias, gate)
        activate_row(gate, room.zeros[:n], layer.activation)
        for c in range(n):
            line[c] *= gate[c]
    elif layer.activation >= 0:
        activate_row(line, room.zeros[:n], layer.activation)


@compiled()
def linear(tiles, layer, rows, room, first, last, out, stride, mode):
    """Outputs first .. last of a layer for rows of float32, a panel of room.panel's rows at a time; as `columns`."""
    step = panel_rows(room)
    for i in range(0, rows.n, step):
        n_rows = min(step, rows.n - i)
        narrow_rows(rows.at + i * rows.stride, rows.stride, n_rows, layer.k, room.panel, room.factors, room.offsets)
        columns(tiles, layer, room, n_rows, first, last, out + i * stride, stride, mode)


@compiled()
def panel_rows(room):
    """Rows of a panel, without those that products may compute beyond its end."""
    return room.panel.shape[0] - SPARE_ROWS


#: of a panel, beyond its end
SPARE_ROWS = max(avx512.SPARE_ROWS, amx.SPARE_ROWS)


@compiled()
def linear_twice(tiles, inner, outer, rows, room, outer_room, between, out, stride, mode):
    """rows -> inner -> outer -> out. between: the inner layer's rows of a panel, (r, n) float32.

    With bfloat16 they go to the outer layer's panel as they are made, and `between` is not used.
    """
    step = min(panel_rows(room), panel_rows(outer_room))
    for i in range(0, rows.n, step):
        n_rows = min(step, rows.n - i)
        narrow_rows(rows.at + i * rows.stride, rows.stride, n_rows, inner.k, room.panel, room.factors, room.offsets)
        _between(tiles, inner, room, n_rows, outer_room, between, outer_room.panel)
        columns(tiles, outer, outer_room, n_rows, i64(0), outer.n, out + i * stride, stride, mode)


def _between(tiles, inner, room, n_rows, outer_room, between, panel):
    """Fill panel, the outer layer's, with what the inner layer gives."""
    raise NotImplementedError


@overload(_between)
def _between_of(tiles, inner, room, n_rows, outer_room, between, panel):
    def rounded(tiles, inner, room, n_rows, outer_room, between, panel):
        panel[:n_rows, inner.n :] = 0
        at, stride = i64(panel.ctypes.data), panel.strides[0]
        columns(tiles, inner, room, n_rows, i64(0), inner.n, at, stride, i64(BFLOAT16))

    def quantised(tiles, inner, room, n_rows, outer_room, between, panel):
        at, stride = i64(between.ctypes.data), between.strides[0]
        columns(tiles, inner, room, n_rows, i64(0), inner.n, at, stride, i64(SET))
        narrow_rows(at, stride, n_rows, inner.n, panel, outer_room.factors, outer_room.offsets)

    return rounded if panel.dtype == types.uint16 else quantised
