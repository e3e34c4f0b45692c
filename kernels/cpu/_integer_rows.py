"""Integer products of a panel of rows (`_integers.py`): on addresses, from row to row."""

from typing import NamedTuple

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu import _pairs
from astra_mpi.kernels.cpu._digits import add_digits, add_whole, quantise_digits, quantise_whole
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._integer_words import COLUMNS
from astra_mpi.kernels.cpu._math import f32
from astra_mpi.kernels.cpu._memory import floats
from astra_mpi.kernels.cpu.products import amx
from astra_mpi.kernels.cpu.products.layout import GROUP, STRIP
from astra_mpi.kernels.cpu.products.rows import row_at, rows_of

Array = np.ndarray

#: rows that are rounded before they are multiplied: these, some strips, and their sums stay in the second-level cache
PANEL = 128
#: rows of a tile
ROWS = 16
#: the bytes of counts from row to row
_LDC = 4 * COLUMNS


class Given(NamedTuple):
    """What all threads read, by its address."""

    places: Array  # (parts, 2) int64: where the rows of each begin, and their width
    words: int  # see `_integer_words`
    pair_bytes: int  # of two strips
    scale: int  # (groups, n_pad) float32
    scale_bytes: int  # of a group
    state: int  # (n, m) float32; 0: products are added to zeros
    keep: np.float32
    bias: int  # (m,) float32


class Work(NamedTuple):
    """Scratch of a thread."""

    panel: Array  # (2 PANEL, k_pad) int8: of sixteen rows the high digits, then the low ones; or (PANEL, 2 k_pad) int16
    line: Array  # (k_pad,) float32: a row
    steps: Array  # (PANEL, groups) float32
    offsets: Array  # (PANEL, groups) int32
    counts: Array  # (3 ROWS, COLUMNS) int32: exact sums of a group
    sums: Array  # (ROWS, COLUMNS) float32


@compiled()
def product_rows(tiles, given, first, last, work, out):
    """Rows first .. last of out. tiles: of AMX, or None."""
    m = out.shape[1]
    if tiles is not None:
        amx.configure(tiles.ctypes.data)
    for i in range(first, last, PANEL):
        n = min(PANEL, last - i)
        for r in range(n):
            _read_row(given, i + r, work.line)
            _quantise(tiles, work, r)
        for c in range(0, m, COLUMNS):
            strips, whole = given.words + c // COLUMNS * given.pair_bytes, c + COLUMNS <= m
            for r in range(0, n, ROWS):
                here, place = min(ROWS, n - r), out.ctypes.data + 4 * ((i + r) * m + c)
                to, stride = (place, 4 * m) if whole else (work.sums.ctypes.data, work.sums.strides[0])
                _begin(given, i + r, here, c, m, to, stride)
                _multiply(tiles, given, work, r, here, strips, c, to, stride)
                for j in range(0 if whole else here):
                    line, row = floats(to + j * stride, m - c), floats(place + 4 * j * m, m - c)
                    for e in range(m - c):
                        row[e] = line[e]
    if tiles is not None:
        amx.release()


@inner()
def _read_row(given, i, line):
    """Row i of all parts side by side, and zeros."""
    at = 0
    for p in range(len(given.places)):
        width = given.places[p, 1]
        row = floats(given.places[p, 0] + 4 * i * width, width)
        for j in range(width):
            line[at + j] = row[j]
        at += width
    line[at:] = f32(0)


@inner()
def _quantise(tiles, work, r):
    """The line becomes row r of the panel."""
    if tiles is None:
        quantise_whole(work.line, work.panel.ctypes.data + r * work.panel.strides[0], work.steps[r])
    else:
        rows, at = rows_of(tiles, work.panel.ctypes.data, work.panel.strides[0]), 2 * ROWS * (r // ROWS) + r % ROWS
        high, low = row_at(rows, at), row_at(rows, at + ROWS)
        quantise_digits(work.line, rows[2], high, low, work.steps[r], work.offsets[r])


@inner()
def _begin(given, i, n, c, m, to, stride):
    """What products are added to: lines of n rows from i on, columns from c on, `stride` bytes apart."""
    width = min(COLUMNS, m - c)
    for j in range(n):
        line = floats(to + j * stride, width)
        if given.state == 0:
            for e in range(width):
                line[e] = f32(0)
        else:
            row = floats(given.state + 4 * ((i + j) * m + c), width)
            bias = floats(given.bias + 4 * c, width)
            for e in range(width):
                line[e] = f32(row[e] * given.keep) + bias[e]


@inner()
def _multiply(tiles, given, work, r, n, strips, c, to, stride):
    """Lines of n rows from row r of the panel on += products with two strips, whose first output is c."""
    counts, k_pad = work.counts.ctypes.data, work.line.size
    rows, lda = rows_of(tiles, work.panel.ctypes.data, work.panel.strides[0]), work.panel.strides[0]
    ldb, rest = (given.pair_bytes // 2, counts) if tiles is None else (given.pair_bytes // 4, counts + 2 * ROWS * _LDC)
    for g in range(work.steps.shape[1]):
        first, scale = GROUP * g, given.scale + g * given.scale_bytes + 4 * c
        some = min(GROUP, k_pad - first)
        if tiles is None:
            _multiply_pairs(rows[0] + r * lda + 4 * first, lda, n, strips + 4 * STRIP * first, ldb, counts, some)
            for j in range(n):
                add_whole(to + j * stride, counts + j * _LDC, work.steps[r + j, g], scale)
        else:
            part, high, words = amx.from_word(rows, first // 4), strips + STRIP * first, some // 4
            amx.block(work.counts, part, 2 * r, True, high, ldb, words, True, counts, _LDC)
            amx.block(work.counts, part, 2 * r, False, high + 2 * ldb, ldb, words, True, rest, _LDC)
            for j in range(n):
                upper, more = counts + j * _LDC, rest + j * _LDC
                offset, step = work.offsets[r + j, g], work.steps[r + j, g]
                add_digits(to + j * stride, upper, upper + ROWS * _LDC, more, offset, step, scale)


@inner()
def _multiply_pairs(a, lda, n, b, ldb, c, words):
    """c (n, 32) = rows at `a` @ two strips at b."""
    for s in range(0, 2, _pairs.STRIPS):
        strip, to = b + s * ldb, c + 4 * STRIP * s
        whole = n // _pairs.ROWS * _pairs.ROWS
        for i in range(0, whole, _pairs.ROWS):
            _pairs.many(a + i * lda, lda, strip, ldb, to + i * _LDC, _LDC, words)
        for i in range(whole, n):
            _pairs.one(a + i * lda, lda, strip, ldb, to + i * _LDC, _LDC, words)
