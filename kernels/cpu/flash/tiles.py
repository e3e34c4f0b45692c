"""Online softmax attention, compiled: scores of a block of rows and a run of keys stay in the cache from the first
product to the second.

Per key head, keys and values are narrowed and packed once. Then, for a block of rows (queries of all heads that read
this key head) and a run of keys, one tile of scores is multiplied, biased, exponentiated and narrowed in place, and
multiplied with the values. Sums, maxima and weights are float32.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import FASTMATH, exp, f32
from astra_mpi.kernels.cpu._memory import floats
from astra_mpi.kernels.cpu.dense.attend import finish_row
from astra_mpi.kernels.cpu.flash.pack import addresses, narrow_row, pack_keys, pack_values
from astra_mpi.kernels.cpu.flash.rows import rows_max, rows_weights
from astra_mpi.kernels.cpu.flash.scores import adjust, hide, span
from astra_mpi.kernels.cpu.products import amx, avx512

u32, i64 = np.uint32, np.int64  # addresses and sizes of one type, or functions are compiled for both

#: keys of a tile, and float32 between its rows: a multiple of 4 KiB would put all rows in the same lines of the cache
TILE_KEYS = 512
_STRIDE = TILE_KEYS + 16
#: rows whose weights are made together
_ROWS = 4
_rows_max = rows_max(_ROWS)
_rows_weights = rows_weights(_ROWS)


class Heads(NamedTuple):
    """Where numbers of heads lie: address, and bytes from head to head and from row to row."""

    at: int
    head: int
    row: int


class Sizes(NamedTuple):
    n_groups: int  # key heads
    repeat: int  # query heads of each
    n_queries: int
    n_keys: int
    d: int
    n_words: int  # of a query or key, padded
    block: int  # rows whose scores are computed at once, a multiple of _ROWS
    tile_rows: int  # rows whose sums are kept at once, a multiple of block


def _padded(sizes):
    """Keys and values' numbers with their padding: two strips are multiplied together."""
    return (sizes.n_keys + 31) // 32 * 32, (sizes.d + 31) // 32 * 32


def workspace_words(sizes: Sizes) -> int:
    """Words (32 bits) of the workspace of `attend_units`."""
    padded, columns = _padded(sizes)
    kept = sizes.tile_rows * (sizes.n_words + columns + 3)
    return 16 + padded * (sizes.n_words + columns // 2) + sizes.block * _STRIDE + kept


_padded_inside = njit(_padded)


@compiled(fastmath=FASTMATH, error_model="numpy")
def attend_units(tiles, places, key_rows, sizes, scores, begins, first, last, work):
    """`attend` for units first .. last of work: tiles of rows, key head after key head. Row r of a key head is query
    r // repeat of its query head r % repeat.

    tiles: of AMX, or None. places: Heads of q, k, v, acc, row_max, row_sum and, in the last step, of the result, else
    zeros. key_rows (m,) int64: which rows of k and v the keys are; empty: their first. begins: the first step. work:
    (workspace_words,) uint32.
    """
    q, k, v, acc, row_max, row_sum, out = places
    n_tiles = (sizes.repeat * sizes.n_queries + sizes.tile_rows - 1) // sizes.tile_rows
    room = _room(sizes, work)
    packed, at = -1, np.empty(sizes.n_keys, i64)
    for unit in range(first, last):
        group, row = unit // n_tiles, unit % n_tiles * sizes.tile_rows
        if group != packed:
            addresses(k.at + group * k.head, k.row, key_rows, at)
            pack_keys(at, sizes.d, room.queries[0], room.keys)
            addresses(v.at + group * v.head, v.row, key_rows, at)
            pack_values(at, sizes.d, room.values)
            packed = group
        n_rows = min(sizes.tile_rows, sizes.repeat * sizes.n_queries - row)
        _begin(q, acc, row_max, row_sum, begins, sizes, group, row, n_rows, room)
        _tile(tiles, sizes, scores, group, row, n_rows, room)
        _end(acc, row_max, row_sum, out, sizes, group, row, n_rows, room)


class _Room(NamedTuple):
    """Parts of the workspace."""

    keys: np.ndarray  # strips of a key head
    values: np.ndarray
    scores: np.ndarray  # (block, _STRIDE) float32
    sums: np.ndarray  # (tile_rows, columns) float32
    queries: np.ndarray  # (tile_rows, words)
    state: np.ndarray  # (3, tile_rows) float32: maxima, those before, sums of weights


@compiled()
def _room(sizes, work):
    padded, columns = _padded_inside(sizes)
    n, words = sizes.tile_rows, sizes.n_words
    at = (-work.ctypes.data // 4) % 16  # vectors begin at multiples of 64 bytes
    keys = work[at : at + padded * words].reshape(padded // 16, words, 16)
    at += keys.size
    values = work[at : at + padded // 2 * columns].reshape(columns // 16, padded // 2, 16)
    at += values.size
    scores = work[at : at + sizes.block * _STRIDE].reshape(sizes.block, _STRIDE).view(f32)
    at += scores.size
    sums = work[at : at + n * columns].reshape(n, columns).view(f32)
    at += sums.size
    queries = work[at : at + n * words].reshape(n, words)
    at += queries.size
    return _Room(keys, values, scores, sums, queries, work[at : at + 3 * n].reshape(3, n).view(f32))


@compiled(fastmath=FASTMATH)
def _begin(q, acc, row_max, row_sum, begins, sizes, group, row, n_rows, room):
    """Queries and running state of a tile's rows; zeros beyond the last row. As `_end`, on addresses: see `_weigh`."""
    words, columns = room.queries.shape[1], room.sums.shape[1]
    queries, sums = room.queries.ctypes.data, room.sums.ctypes.data
    highest, totals = room.state[0], room.state[2]
    head, i = _first_of(sizes, group, row)
    for r in range(n_rows):
        narrow_row(q.at + head * q.head + i * q.row, sizes.d, queries + 4 * words * r, words)
        line = floats(sums + 4 * columns * r, columns)
        if begins:
            for e in range(columns):
                line[e] = f32(0)
            highest[r], totals[r] = -np.inf, f32(0)
        else:
            running = floats(acc.at + head * acc.head + i * acc.row, sizes.d)
            for e in range(sizes.d):
                line[e] = running[e]
            for e in range(sizes.d, columns):
                line[e] = f32(0)
            highest[r] = floats(row_max.at + head * row_max.head + i * row_max.row, i64(1))[0]
            totals[r] = floats(row_sum.at + head * row_sum.head + i * row_sum.row, i64(1))[0]
        head, i = _next_of(sizes, group, head, i)
    room.queries[n_rows:] = u32(0)
    room.sums[n_rows:] = f32(0)
    room.state[:, n_rows:] = f32(0)


@compiled(fastmath=FASTMATH, error_model="numpy")
def _end(acc, row_max, row_sum, out, sizes, group, row, n_rows, room):
    """The running state of a tile's rows, or in the last step their result."""
    columns, sums, highest, totals = room.sums.shape[1], room.sums.ctypes.data, room.state[0], room.state[2]
    head, i = _first_of(sizes, group, row)
    for r in range(n_rows):
        line = floats(sums + 4 * columns * r, sizes.d)
        if out.at:
            finish_row(line, totals[r], out.at + head * out.head + i * out.row)
        else:
            running = floats(acc.at + head * acc.head + i * acc.row, sizes.d)
            for e in range(sizes.d):
                running[e] = line[e]
            floats(row_max.at + head * row_max.head + i * row_max.row, i64(1))[0] = highest[r]
            floats(row_sum.at + head * row_sum.head + i * row_sum.row, i64(1))[0] = totals[r]
        head, i = _next_of(sizes, group, head, i)


@inner()
def _first_of(sizes, group, row):
    """Query head and query of a row of a key head."""
    return group * sizes.repeat + row % sizes.repeat, row // sizes.repeat


@inner()
def _next_of(sizes, group, head, i):
    """Those of the next row."""
    return (head + 1, i) if head + 1 < (group + 1) * sizes.repeat else (group * sizes.repeat, i + 1)


@compiled(fastmath=FASTMATH, error_model="numpy")
def _tile(tiles, sizes, scores, group, row, n_rows, room):
    """All keys for the rows of a tile, from row `row` of the key head on."""
    end_of_all = min(sizes.n_keys, (row + n_rows - 1) // sizes.repeat + scores.reach + 1)
    for first_key in range(0, end_of_all, TILE_KEYS):
        for b in range(0, n_rows, sizes.block):
            n = min(sizes.block, n_rows - b)
            begin, end = span(row + b, n, sizes, scores)
            begin, end = max(begin, first_key), min(end, first_key + TILE_KEYS)
            if begin < end:
                n_pairs = (end - begin + 31) // 32
                _score(tiles, room, b, n, begin, n_pairs)
                if scores.cap > 0 or scores.window > 0 or scores.relative.shape[1] > 1:
                    n_keys = min(32 * n_pairs, sizes.n_keys - begin)
                    adjust(room.scores, scores, sizes, group, row + b, n, begin, n_keys)
                hide(room.scores, n, n_pairs, row + b, sizes.repeat, scores.reach - begin)
                biased = scores.biased or begin + 32 * n_pairs > sizes.n_keys
                _weigh(room, scores.bias[begin:], biased, b, n, n_pairs)
                _gather(tiles, room, b, n, begin, n_pairs)


@compiled()
def multiply(tiles, a, lda, n, b, ldb, n_strips, sums, n_words, begin):
    """sums[:n, : 16 n_strips] (+)= n rows at `a` @ strips at `b`."""
    if tiles is None:
        avx512.sweep(a, lda, n, b, ldb, n_strips, sums, 0, n_words, begin)
    else:
        amx.sweep(tiles, (a, lda, 64, 16 * lda), n, b, ldb, n_strips, sums, 0, n_words, begin)


@compiled()
def _score(tiles, room, b, n, begin, n_pairs):
    """Scores (n, 32 n_pairs) of rows from b on and keys from `begin` on."""
    words = room.queries.shape[1]
    a, strip = i64(room.queries[b].ctypes.data), i64(room.keys[begin // 16].ctypes.data)
    multiply(tiles, a, 4 * words, n, strip, 64 * words, 2 * n_pairs, room.scores, words, i64(1))


@compiled()
def _gather(tiles, room, b, n, begin, n_pairs):
    """Sums of rows from b on += weights, which begin the rows of scores, @ values from `begin` on."""
    strip, strip_bytes = i64(room.values[0, begin // 2].ctypes.data), room.values.strides[0]
    a, n_strips = i64(room.scores.ctypes.data), room.values.shape[0]
    multiply(tiles, a, 4 * _STRIDE, n, strip, strip_bytes, n_strips, room.sums[b:], 16 * n_pairs, i64(0))


@compiled(fastmath=FASTMATH)
def _weigh(room, bias, biased, b, n, n_pairs):
    """Scores of n rows -> weights; maxima, sums of weights and sums, from row b on, follow the new maxima.

    On addresses: arrays cut out of others would be counted, four rows at a time.
    """
    state, width, n_sums = room.state.ctypes.data + 4 * b, room.state.strides[0], room.sums.shape[1]
    n_all = (n + _ROWS - 1) // _ROWS * _ROWS
    highest, before, totals = floats(state, n_all), floats(state + width, n_all), floats(state + 2 * width, n_all)
    scores, sums, stride, biases = room.scores.ctypes.data, room.sums[b].ctypes.data, 4 * _STRIDE, bias.ctypes.data
    for r in range(0, n_all, _ROWS):
        for i in range(r, r + _ROWS):
            before[i] = highest[i]
        _rows_max(scores + r * stride, stride, biases, biased, n_pairs, state + 4 * r)
        for i in range(r, r + _ROWS):
            if highest[i] > before[i]:
                by = before[i] - highest[i]
                decay, line = exp(by) if by > f32(-87) else f32(0), floats(sums + 4 * n_sums * i, n_sums)
                totals[i] *= decay
                for e in range(n_sums):
                    line[e] *= decay
        _rows_weights(scores + r * stride, stride, n_pairs, state + 4 * r, state + 2 * width + 4 * r)
