"""Outputs of a panel of rows by AMX: blocks of 32 rows by 32 columns.

Some words of all rows are multiplied by some strips before the next words, and sums wait in the second-level cache.
With the last words, 32 rows at a time are finished while they are in the first-level one.
"""

from numba import types
from numba.extending import overload

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._memory import floats, integers
from astra_mpi.kernels.cpu.products import amx
from astra_mpi.kernels.cpu.products.finish import finish
from astra_mpi.kernels.cpu.products.layout import GROUP_WORDS, STRIP
from astra_mpi.kernels.cpu.products.lines import add_scaled_line, scale_line
from astra_mpi.kernels.cpu.products.rows import rows_of

#: words of two strips, or of 32 rows, that stay in the first-level cache; of int8 some groups
_WORDS, _GROUPS_WORDS = 192, 4 * GROUP_WORDS
#: of a block
_ROWS, _COLUMNS = 32, 32
#: lines of each strip that follows, asked for while sixteen words are multiplied: few rows must not wait for more
_MOST_ASKED = 4
#: rows, multiplied with a strip before the next one, that leave the processor time enough to ask by itself
_MANY_ROWS = 512


@compiled()
def columns(tiles, layer, room, n_rows, first, last, out, stride, mode):
    """See `layer.columns`."""
    amx.configure(tiles.ctypes.data)
    rows = rows_of(tiles, room.panel.ctypes.data, room.panel.strides[0])
    n_words, width, step = layer.n_words, room.sums.shape[1], _step(room.panel)
    before = (n_words - 1) // step * step
    for j in range(first, last, width):
        n, skipped = min(width, last - j), j // STRIP * 4 * STRIP * n_words
        strips, gate = layer.strips + skipped, layer.gate + skipped
        if layer.gate != 0:
            _add(room.panel, room, rows, 0, n_rows, gate, n_words, 0, n_words, n, room.gate_sums)
        _add(room.panel, room, rows, 0, n_rows, strips, n_words, 0, before, n, room.sums)
        for i in range(0, n_rows, _ROWS):
            end = min(n_rows, i + _ROWS)
            _add(room.panel, room, rows, i, end, strips, n_words, before, n_words, n, room.sums)
            finish(tiles, layer, room, i, end, j, 0, n, out, stride, mode)
    amx.release()


def _step(panel):
    """Words multiplied before the next strips."""
    raise NotImplementedError


@overload(_step)
def _step_of(panel):
    if panel.dtype == types.uint16:
        return lambda panel: _WORDS
    return lambda panel: _GROUPS_WORDS


def _add(panel, room, rows, first, last, strips, n_words, begin, end, n, sums):
    """Rows first .. last and n columns of sums += products of words begin .. end; sums begin with word 0."""
    raise NotImplementedError


@overload(_add)
def _add_of(panel, room, rows, first, last, strips, n_words, begin, end, n, sums):
    by = _floats if panel.dtype == types.uint16 else _integers
    return lambda panel, room, rows, first, last, strips, n_words, begin, end, n, sums: by(
        room, rows, first, last, strips, 4 * STRIP * n_words, begin, end, n, sums
    )


@compiled()
def _floats(room, rows, first, last, strips, strip_bytes, begin, end, n, sums):
    ldc, n_words = sums.strides[0], strip_bytes // (4 * STRIP)
    most = min(_MOST_ASKED, (16 * _ROWS + last - first - 1) // (last - first)) if last - first <= _MANY_ROWS else 0
    for w in range(begin, end, _WORDS):
        part, words = amx.from_word(rows, w), min(_WORDS, end - w)
        for c in range(0, n, _COLUMNS):
            strip = strips + 4 * STRIP * w + c // STRIP * strip_bytes
            if c + _COLUMNS < n:
                follows, unasked = strip + 2 * strip_bytes, words
            else:
                follows, unasked = strips + 4 * STRIP * (w + _WORDS), max(0, min(_WORDS, n_words - w - _WORDS))
            for i in range(first, last, _ROWS):
                at, each = sums.ctypes.data + i * ldc + 4 * c, min(most, unasked // (words // 16))
                amx.block_asking(
                    sums, part, i, last - i > 16, strip, strip_bytes, words, w == 0, at, ldc, follows, each
                )
                follows += words // 16 * each * 4 * STRIP
                unasked -= words // 16 * each


@compiled()
def _integers(room, rows, first, last, strips, strip_bytes, begin, end, n, sums):
    """Of each group the exact sums, less a row's offset, times its factor."""
    counts, ldc = room.counts.ctypes.data, sums.strides[0]
    factors, offsets, group_bytes = room.factors.ctypes.data, room.offsets.ctypes.data, room.factors.strides[0]
    for start in range(begin, end, _GROUPS_WORDS):
        stop = min(end, start + _GROUPS_WORDS)
        for c in range(0, n, _COLUMNS):
            for i in range(first, last, _ROWS):
                strip, out = strips + c // STRIP * strip_bytes, sums.ctypes.data + i * ldc + 4 * c
                for w in range(start, stop, GROUP_WORDS):
                    part, words, at = amx.from_word(rows, w), min(GROUP_WORDS, stop - w), strip + 4 * STRIP * w
                    amx.block(room.counts, part, i, last - i > 16, at, strip_bytes, words, True, counts, 4 * _COLUMNS)
                    of_rows = w // GROUP_WORDS * group_bytes + 4 * i
                    _scale(out, ldc, counts, factors + of_rows, offsets + of_rows, min(_ROWS, last - i), w == 0)


@inner()
def _scale(out, ldc, counts, factors, offsets, n, begin):
    """n rows of sums at `out` (+)= counts of a block, less the rows' offsets, times their factors."""
    factor, offset = floats(factors, n), integers(offsets, n)
    for r in range(n):
        if begin:
            scale_line(out + r * ldc, counts + 4 * _COLUMNS * r, factor[r], offset[r])
        else:
            add_scaled_line(out + r * ldc, counts + 4 * _COLUMNS * r, factor[r], offset[r])
