"""Products that are the same on every processor (kernels/integers.py): by AMX, where each digit of a row is a row of
its own, in tiles of sixteen, or by pairs of 16-bit integers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.aligned import address, aligned
from astra_mpi.kernels.cpu import _pairs, _team
from astra_mpi.kernels.cpu._digits import LINE, add_digits, add_whole, quantise_digits, quantise_whole
from astra_mpi.kernels.cpu._features import path
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import f32
from astra_mpi.kernels.cpu._memory import floats
from astra_mpi.kernels.cpu.dense.room import room
from astra_mpi.kernels.cpu.products import amx
from astra_mpi.kernels.cpu.products.layout import GROUP, STRIP, ZERO
from astra_mpi.kernels.cpu.products.rows import row_at, rows_of
from astra_mpi.kernels.integers import Integers, Moved, integers
from astra_mpi.kernels.integers import integer_product as specified
from astra_mpi.kernels.kept import Kept

Array = np.ndarray

#: rows that are rounded before they are multiplied: these, some strips, and their sums stay in the second-level cache
PANEL = 128
#: rows of a tile, and outputs that are summed up at once
_ROWS, _COLUMNS = 16, 2 * STRIP
#: the bytes of counts from row to row
_LDC = 4 * _COLUMNS
#: multiply-adds below which a second thread costs more than it saves
_LEAST_SHARED = 1 << 20


class Given(NamedTuple):
    """What all threads read, by its address."""

    places: Array  # (parts, 2) int64: where the rows of each begin, and their width
    words: int  # see `_digit_words` and `_pair_words`
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
    counts: Array  # (3 _ROWS, _COLUMNS) int32: exact sums of a group
    sums: Array  # (_ROWS, _COLUMNS) float32


def integer_product(parts: Sequence[Array], weights: Integers, out: Array, moved: Moved | None = None) -> Array:
    """See kernels.integers; out: C-contiguous. Raises ValueError on sizes that do not fit."""
    sizes = out.shape, *(part.shape for part in parts)
    if sum(width for _, width in sizes[1:]) != weights.shape[0] or {n for n, _ in sizes} != {len(out)}:
        raise ValueError(f"rows {sizes[1:]} times weights {weights.shape} are not {out.shape}")
    if not (out.size and weights.shape[0]):
        return specified(parts, weights, out, moved)
    tiles = _TILES if path("int8").name == "amx" else None
    words, scale = (_packed_pairs if tiles is None else _packed_digits)(weights.high, weights)
    parts = [np.ascontiguousarray(part, np.float32) for part in parts]
    places = np.array([(address(part), part.shape[1]) for part in parts], np.int64)
    state, keep, bias = (None, 0, None) if moved is None else moved
    held = [None if array is None else np.ascontiguousarray(array, np.float32) for array in (state, bias)]
    at = address(words), words.strides[0], address(scale), scale.strides[0]
    given = Given(places, *at, address(held[0]), np.float32(keep), address(held[1]))

    def share(index: int, count: int) -> None:
        first, last = len(out) * index // count, len(out) * (index + 1) // count
        _rows(tiles, given, first, last, _work(weights, tiles is not None), out)

    if _team.size() == 1 or len(out) * weights.high.size < _LEAST_SHARED:
        share(0, 1)
    else:
        _team.run(share)
    return out


def warm_up_integers() -> None:
    """Compile what products take here, or load it from the cache on disk."""
    x = np.ones((1, 1), np.float32)
    integer_product([x], integers(x), x.copy(), Moved(x, 1.0, x[0]))


def _work(weights: Integers, digits: bool) -> Work:
    groups, k_pad = len(weights.scale), _padded(weights.shape[0])
    panel = (
        room("digits", 2 * PANEL, k_pad // 4).view(np.int8) if digits else room("pairs", PANEL, k_pad).view(np.int16)
    )
    return Work(
        panel,
        room("a row of integers", k_pad),
        room("steps of integers", PANEL, groups),
        room("offsets of integers", PANEL, groups).view(np.int32),
        room("counts of integers", 3 * _ROWS, _COLUMNS).view(np.int32),
        room("sums of integers", _ROWS, _COLUMNS),
    )


def _padded(k: int) -> int:
    """Inputs, in whole lines."""
    return -(-k // LINE) * LINE


def _strips(numbers: Array, dtype: type, more: int) -> Array:
    """(pairs, 2, 16, k_pad): numbers (k, m) and `more`, of pairs of strips of 16 outputs."""
    k, m = numbers.shape
    table = np.full((-(-m // _COLUMNS) * _COLUMNS, _padded(k)), more, dtype)
    table[:m, :k] = numbers.T.astype(np.int16) + more
    return table.reshape(-1, 2, STRIP, _padded(k))


def _digit_words(weights: Integers) -> Array:
    """(pairs, 2, 2, k_pad / 4, 16, 4) uint8, ZERO more: of two strips the high digits, then the low ones."""
    digits = np.stack([_strips(numbers, np.uint8, ZERO) for numbers in (weights.high, weights.low)], axis=1)
    return digits.reshape(*digits.shape[:-1], -1, 4).swapaxes(3, 4)


def _pair_words(weights: Integers) -> Array:
    """(pairs, 2, k_pad, 16, 2) int16, of two strips: of each group the high digits, then the low ones."""
    both = [_strips(numbers, np.int16, 0) for numbers in (weights.high, weights.low)]
    groups = [digit[..., g : g + GROUP] for g in range(0, both[0].shape[-1], GROUP) for digit in both]
    row = np.concatenate(groups, axis=-1)
    return row.reshape(*row.shape[:-1], -1, 2).swapaxes(2, 3)


def _packing(words_of: Callable[[Integers], Array]) -> Kept[tuple[Array, Array]]:
    """Of the high digits, and the weights that they are of: their words, and scale (groups, n_pad)."""

    def pack(high: Array, weights: Integers) -> tuple[Array, Array]:
        found = words_of(weights)
        words, scale = aligned(found.shape, found.dtype), aligned((len(weights.scale), len(found) * _COLUMNS))
        words[...], scale[:, : weights.shape[1]] = found, weights.scale
        return words, scale

    return Kept(pack)


_TILES = amx.configuration()
_packed_digits, _packed_pairs = _packing(_digit_words), _packing(_pair_words)


@compiled()
def _rows(tiles, given, first, last, work, out):
    """Rows first .. last of out. tiles: of AMX, or None."""
    m = out.shape[1]
    if tiles is not None:
        amx.configure(tiles.ctypes.data)
    for i in range(first, last, PANEL):
        n = min(PANEL, last - i)
        for r in range(n):
            _read_row(given, i + r, work.line)
            _quantise(tiles, work, r)
        for c in range(0, m, _COLUMNS):
            strips, whole = given.words + c // _COLUMNS * given.pair_bytes, c + _COLUMNS <= m
            for r in range(0, n, _ROWS):
                here, place = min(_ROWS, n - r), out.ctypes.data + 4 * ((i + r) * m + c)
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
        rows, at = rows_of(tiles, work.panel.ctypes.data, work.panel.strides[0]), 2 * _ROWS * (r // _ROWS) + r % _ROWS
        high, low = row_at(rows, at), row_at(rows, at + _ROWS)
        quantise_digits(work.line, rows[2], high, low, work.steps[r], work.offsets[r])


@inner()
def _begin(given, i, n, c, m, to, stride):
    """What products are added to: lines of n rows from i on, columns from c on, `stride` bytes apart."""
    width = min(_COLUMNS, m - c)
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
    ldb, rest = (given.pair_bytes // 2, counts) if tiles is None else (given.pair_bytes // 4, counts + 2 * _ROWS * _LDC)
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
                add_digits(to + j * stride, upper, upper + _ROWS * _LDC, more, offset, step, scale)


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
