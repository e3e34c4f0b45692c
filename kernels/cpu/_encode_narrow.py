"""Nearest-entry search with products in bfloat16, whose codes are those of float32.

Scores in bfloat16 leave the entries that can be nearest: those within their error of the best score. Among these the
exact distances decide, as float32 decides among its own near ties. So the codes are the same, to the bit.

The error follows the size of the factors. So both are taken relative to the mean entry, which changes no difference of
distances: activations often share a large mean.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.aligned import aligned
from astra_mpi.kernels.cpu import _team
from astra_mpi.kernels.cpu._distance import exact_distance
from astra_mpi.kernels.cpu._math import FASTMATH, f32, from_ordered_bits, i32, ordered_bits
from astra_mpi.kernels.cpu._memory import float_rows, floats, shorts
from astra_mpi.kernels.cpu.dense.room import room
from astra_mpi.kernels.cpu.flash.calls import tiles_of, used_path
from astra_mpi.kernels.cpu.flash.pack import addresses, narrow_row, pack_keys
from astra_mpi.kernels.cpu.flash.tiles import multiply
from astra_mpi.kernels.cpu.products import amx
from astra_mpi.kernels.kept import Kept

Array = np.ndarray

#: rows whose scores are computed together
PANEL = 96
#: rows and entries, and numbers of an entry, below which float32 is as fast
FEW, _NARROW = 32, 64
#: distances below which a second thread costs more than it saves
_THREAD_DISTANCES = 1 << 16


class _Packed(NamedTuple):
    """The entries of C codes, K of each, as products take them."""

    strips: Array  # (C, K' / 16, words, 16) uint32: entries less their code's mean, in bfloat16
    means: Array  # (C, W) float32
    half_norms: Array  # (C, K') float32: half the squared norms of what is packed, inf beyond the last
    norms: Array  # (C, K') float32: of what is packed
    losses: Array  # (C, K') float32: norms of what rounding takes from it
    largest: Array  # (C, 2) float32: of norms and losses


def pays(x: Array, entries: Array) -> bool:
    """Whether this CPU finds codes of rows x among entries (C, K, W) faster so."""
    return len(x) >= FEW and fits(*entries.shape[1:])


def fits(size: int, width: int) -> bool:
    """The same of many rows, among so many entries of a code."""
    return size >= FEW and width >= _NARROW and used_path() != "widened"


def make_ready(entries: Array, keep: Callable[[Array], Array]) -> None:
    """Pack entries (C, K, W) now, to where `keep` puts arrays."""
    _packed(entries, keep)


def search(x: Array, step: int, entries: Array) -> Array:
    """Codes (n, C) uint16 of rows x, C-contiguous, among entries (C, K, W).

    Entries do not change while their array lives: they are packed once. step: from a code's part of a row to the next
    one's; 0: each code is of what those before it left, in x.
    """
    n_codes, size, width = entries.shape
    packed, tiles = _packed(entries), tiles_of(used_path())
    words, padded = packed.strips.shape[2], packed.half_norms.shape[1]
    codes = np.empty((len(x), n_codes), np.uint16)

    def share(index: int, count: int) -> None:
        first, last = len(x) * index // count, len(x) * (index + 1) // count
        work = room("narrow rows", PANEL, words), room("scores of entries", PANEL, padded), room("centred row", width)
        _search_rows(tiles, x, first, last, step, entries, *packed, *work, codes)

    if _team.size() == 1 or len(x) * n_codes * size < _THREAD_DISTANCES:
        share(0, 1)
    else:
        _team.run(share)
    return codes


def warm_up() -> None:
    """Compile what searches, or load it from the cache on disk."""
    x = np.zeros((FEW, FEW), np.float32)
    search(x, 0, x[None])


def _pack(entries: Array, keep: Callable[[Array], Array] = lambda array: array) -> _Packed:
    """Of entries (C, K, W)."""
    n_codes, size, width = entries.shape
    words, padded = (width + 31) // 32 * 16, (size + 31) // 32 * 32
    packed = _Packed(
        aligned((n_codes, padded // 16, words, 16), np.uint32),
        np.empty((n_codes, width), np.float32),
        *(np.empty((n_codes, n), np.float32) for n in (padded, padded, padded, 2)),
    )
    work = np.empty((16, width), np.float32), np.empty(words, np.uint32)
    for c in range(n_codes):
        sizes = packed.half_norms[c], packed.norms[c], packed.losses[c]
        _pack_entries(entries[c], packed.means[c], *work, packed.strips[c], *sizes)
        packed.largest[c] = packed.norms[c].max(), packed.losses[c].max()
    return _Packed(*map(keep, packed))


#: entries are packed once
_packed = Kept(_pack)


@compiled(fastmath=FASTMATH, error_model="numpy")
def _search_rows(
    tiles, x, first, last, step, entries, strips, means, half_norms, norms, losses, largest, narrow, scores, line, codes
):
    """`search` for rows first .. last - 1. Scratch, float32: narrow (PANEL, words), scores (PANEL, K'), line (W,).

    On addresses: arrays cut out of others would be counted, row by row.
    """
    width, sizes, centred = line.size, np.empty((PANEL, 2), f32), line.ctypes.data
    n_codes, n_strips, words, _ = strips.shape
    size, padded = entries.shape[1], scores.shape[1]
    for begin in range(first, last, PANEL):
        n = min(PANEL, last - begin)
        for c in range(n_codes):
            rows, row_bytes = x.ctypes.data + begin * x.strides[0] + 4 * c * step, x.strides[0]
            for i in range(n):
                _centre(floats(rows + i * row_bytes, width), floats(means[c].ctypes.data, width), line)
                to = narrow.ctypes.data + 4 * words * i
                narrow_row(centred, width, to, words)
                sizes[i, 0], sizes[i, 1] = _sizes(line, shorts(to, width))
            _score(tiles, np.int64(narrow.ctypes.data), n, words, np.int64(strips[c].ctypes.data), n_strips, scores)
            halves = floats(half_norms[c].ctypes.data, padded)
            candidates = float_rows(entries[c].ctypes.data, size, width)
            bounds = floats(norms[c].ctypes.data, padded), floats(losses[c].ctypes.data, padded), largest[c]
            for i in range(n):
                found, vector = floats(scores.ctypes.data + 4 * padded * i, padded), floats(rows + i * row_bytes, width)
                code = _nearest(found, halves, bounds, sizes[i, 0], sizes[i, 1], vector, candidates)
                codes[begin + i, c] = code
                if step == 0 and c + 1 < n_codes:
                    _take_away(vector, candidates, code)


@compiled()
def _score(tiles, rows, n, words, strips, n_strips, scores):
    """scores[:n] = n rows at an address @ strips at another. With tiles, the two strips that follow are asked for."""
    row_bytes, strip_bytes = 4 * words, 64 * words
    if tiles is None:
        multiply(tiles, rows, row_bytes, n, strips, strip_bytes, n_strips, scores, words, np.int64(1))
        return
    blocks, ldc = (n + 31) // 32, 4 * scores.shape[1]
    each = (16 + blocks - 1) // blocks  # lines of a strip for every sixteen words of it, so that all are asked for
    amx.configure(tiles.ctypes.data)
    for s in range(0, n_strips, 2):
        here = strips + s * strip_bytes
        follows, asked = here + 2 * strip_bytes, each if s + 2 < n_strips else 0
        for i in range(0, n, 32):
            to, of = scores.ctypes.data + i * ldc + 64 * s, (rows, row_bytes, 64, 16 * row_bytes)
            amx.block_asking(scores, of, i, n - i > 16, here, strip_bytes, words, True, to, ldc, follows, asked)
            follows += 64 * asked * (words // 16)
    amx.release()


@njit(fastmath=FASTMATH)
def _centre(row, mean, line):
    for w in range(line.size):
        line[w] = row[w] - mean[w]


@njit(fastmath=FASTMATH)
def _take_away(row, entries, code):
    for w in range(row.size):
        row[w] -= entries[code, w]


@compiled(fastmath=FASTMATH, error_model="numpy")
def _pack_entries(entries, mean, lines, line, strips, half_norms, norms, losses):
    """Entries without their mean -> strips, and half their squared norms, inf beyond the last, their norms, and those
    of what rounding takes from them.

    lines (16, W) float32 and line (words,) uint32 are scratch.
    """
    n_codes, width = entries.shape
    mean[:] = f32(0)
    for k in range(n_codes):
        for w in range(width):
            mean[w] += entries[k, w]
    for w in range(width):
        mean[w] /= f32(n_codes)
    half_norms[n_codes:], norms[n_codes:], losses[n_codes:] = f32(np.inf), f32(0), f32(0)
    at, words = np.empty(16, np.int64), line.size
    addresses(np.int64(lines.ctypes.data), 4 * width, at[:0], at)
    for s in range(strips.shape[0]):
        n = max(0, min(16, n_codes - 16 * s))
        for j in range(n):
            centred, square = lines[j], f32(0)
            for w in range(width):
                centred[w] = entries[16 * s + j, w] - mean[w]
                square += centred[w] * centred[w]
            half_norms[16 * s + j] = f32(0.5) * square
            narrow_row(np.int64(centred.ctypes.data), width, np.int64(line.ctypes.data), words)
            norms[16 * s + j], losses[16 * s + j] = _sizes(centred, line.view(np.uint16))
        pack_keys(at[:n], width, line, strips[s : s + 1])


@njit(fastmath=FASTMATH)
def _sizes(line, rounded):
    """The norm of a line, and of its difference to what it is rounded to, bfloat16."""
    square, loss = f32(0), f32(0)
    for w in range(line.size):
        lost = line[w] - i32(i32(rounded[w]) << i32(16)).view(f32)
        square += line[w] * line[w]
        loss += lost * lost
    return np.sqrt(square), np.sqrt(loss)


@njit(fastmath=FASTMATH)
def _nearest(scores, half_norms, bounds, size, lost, vector, entries):
    """The lowest index of least float64 distance among the entries that bfloat16 cannot tell from the nearest.

    bounds: norms of entries, of what rounding took from them, and the largest of both; size, lost: of the row. With
    x = x' + dx and e = e' + de, x . e is x' . e' but for at most |dx| |e| + |x'| |de|. Float32 sums add
    width 2^-23 (|x| + |e|) |e|, and what is below float32's normal numbers counts as zero: the constants allow for the
    sums of these norms, too. Distances in float64 tie where entries are less than their rounding. Most rows have one
    entry that is nearest whatever the largest errors are.
    """
    norms, losses, largest = bounds
    width = f32(vector.size + 8)
    by_norm = f32(1.0 + 2.0**-10) * lost + width * f32(2.0**-23) * size
    by_loss, by_square = f32(1.0 + 2.0**-7) * size, width * f32(2.0**-23)
    least = width * (f32(2.0**-126) + f32(2.0**-50) * size * size)
    lowest = i32(0x7FFFFFFF)
    for k in range(scores.size):
        scores[k] = half_norms[k] - scores[k]
        lowest = i32(min(lowest, ordered_bits(scores[k])))
    most = largest[0] * (by_norm + by_square * largest[0]) + largest[1] * by_loss + least
    limit = from_ordered_bits(lowest) + f32(2.0 + 2.0**-10) * most
    first, n_close = _close(scores, limit, entries.shape[0])
    if n_close == 1:
        return first
    lowest = i32(0x7FFFFFFF)
    for k in range(first, entries.shape[0]):
        if not scores[k] > limit:
            error = norms[k] * (by_norm + by_square * norms[k]) + losses[k] * by_loss + least
            lowest = i32(min(lowest, ordered_bits(scores[k] + error)))
            scores[k] -= error
    limit = from_ordered_bits(lowest)
    first, n_close = _close(scores, limit, entries.shape[0])
    return first if n_close == 1 else i32(_of_close(scores, limit, first, vector, entries))


@njit(fastmath=FASTMATH)
def _close(scores, limit, n_entries):
    """The first entry that may be within the limit, and how many."""
    first, n_close = i32(n_entries), i32(0)
    for k in range(n_entries):
        close = not scores[k] > limit  # a sum that is too large for float32 tells nothing, and is NaN
        first = i32(min(first, i32(k) if close else i32(n_entries)))
        n_close = i32(n_close + i32(close))
    return first, n_close


@njit
def _of_close(scores, limit, first, vector, entries):
    """`_nearest` among the entries, from `first` on, that may be within the limit."""
    least, chosen = np.inf, first
    for k in range(first, entries.shape[0]):
        if not scores[k] > limit:
            distance = exact_distance(vector, entries[k])
            if distance < least:
                least, chosen = distance, k
    return chosen
