"""Nearest-entry search with products in bfloat16, whose codes are those of float32.

Scores in bfloat16 leave the entries that can be nearest: those within their error of the best score. Among these the
exact distances decide, as float32 decides among its own near ties. So the codes are the same, to the bit.

The error follows the size of the factors. So both are taken relative to the mean entry, which changes no difference of
distances: activations often share a large mean.
"""

import weakref
from typing import NamedTuple

import numpy as np
from numba import njit

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.aligned import aligned
from astra_mpi.kernels.cpu import _encode, _team
from astra_mpi.kernels.cpu._math import FASTMATH, f32, from_ordered_bits, i32, ordered_bits
from astra_mpi.kernels.cpu.flash.calls import tiles_of, used_path
from astra_mpi.kernels.cpu.flash.pack import addresses, narrow_row, pack_keys
from astra_mpi.kernels.cpu.flash.tiles import multiply
from astra_mpi.kernels.reference import code_dtype

Array = np.ndarray

#: rows whose scores are computed together; with fewer rows, entries or numbers than FEW, packing entries costs too much
PANEL, FEW = 48, 32
#: distances below which a second thread costs more than it saves
_THREAD_DISTANCES = 1 << 16


class _Packed(NamedTuple):
    """The K entries of one code, as products take them."""

    strips: Array  # (K' / 16, words, 16) uint32: entries less their mean, in bfloat16
    mean: Array  # (W,) float32
    half_norms: Array  # (K',) float32: half the squared norms of what is packed, inf beyond the last
    longest: float  # the largest norm


#: id of entries -> what forgets them with their array, and what they are packed as
_kept: dict[int, tuple[weakref.ref, list[_Packed]]] = {}


def encode_grouped(x: Array, entries: Array, half_norms: Array) -> Array:
    """Codes (n, G) of x (n, G*W); see reference.encode_grouped."""
    n_groups, n_codes, width = entries.shape
    if min(len(x), n_codes, width) < FEW or used_path() == "widened":
        return _encode.encode_grouped(x, entries, half_norms)
    x = np.ascontiguousarray(x)
    codes = np.empty((len(x), n_groups), np.uint16)
    for g, packed in enumerate(_packed(entries)):
        _search(x, g * width, entries[g], packed, codes, g)
    return codes.astype(code_dtype(n_codes), copy=False)


def encode_residual(x: Array, entries: Array, half_norms: Array) -> Array:
    """Codes (n, M) of x (n, W); see reference.encode_residual."""
    n_stages, n_codes, width = entries.shape
    if min(len(x), n_codes, width) < FEW or used_path() == "widened":
        return _encode.encode_residual(x, entries, half_norms)
    residual = np.array(x, order="C")
    codes = np.empty((len(x), n_stages), np.uint16)
    for m, packed in enumerate(_packed(entries)):
        _search(residual, 0, entries[m], packed, codes, m)
        _encode._subtract(residual, entries[m], codes, m)
    return codes.astype(code_dtype(n_codes), copy=False)


def warm_up() -> None:
    """Compile what searches, or load it from the cache on disk."""
    x = np.zeros((FEW, FEW), np.float32)
    encode_residual(x, x[None], np.zeros((1, FEW), np.float32))


def _packed(entries: Array) -> list[_Packed]:
    """Of entries (C, K, W), which do not change while their array lives: they are packed once."""
    key = id(entries)
    if key not in _kept:
        made = [_pack(of_code) for of_code in entries]
        _kept[key] = weakref.ref(entries, lambda _: _kept.pop(key, None)), made
    return _kept[key][1]


def _pack(entries: Array) -> _Packed:
    n_codes, width = entries.shape
    words, padded = (width + 31) // 32 * 16, (n_codes + 31) // 32 * 32
    strips = aligned((padded // 16, words, 16), np.uint32)
    mean, half_norms = np.empty(width, np.float32), np.empty(padded, np.float32)
    work = np.empty((16, width), np.float32), np.empty(words, np.uint32)
    return _Packed(strips, mean, half_norms, _pack_entries(entries, mean, *work, strips, half_norms))


def _search(x: Array, column: int, entries: Array, packed: _Packed, codes: Array, code: int) -> None:
    """codes[:, code] = the nearest entry (K, W) to each row of x[:, column : column + W]."""
    strips, mean, half_norms, longest = packed
    n_strips, words, _ = strips.shape
    tiles = tiles_of(used_path())

    def share(index: int, count: int) -> None:
        rows, scores = np.empty((PANEL, words), np.uint32), np.empty((PANEL, 16 * n_strips), np.float32)
        first, last = len(x) * index // count, len(x) * (index + 1) // count
        work = rows, scores, mean.copy()
        _search_rows(tiles, x, first, last, column, entries, strips, mean, half_norms, longest, work, codes, code)

    if len(x) * len(entries) < _THREAD_DISTANCES:
        share(0, 1)
    else:
        _team.run(share)


@compiled(fastmath=FASTMATH, error_model="numpy")
def _search_rows(tiles, x, first, last, column, entries, strips, mean, half_norms, longest, work, codes, code):
    """`_search` for rows first .. last - 1. work: (PANEL, words) uint32, (PANEL, K') and (W,) float32."""
    rows, scores, line = work
    n_strips, words, _ = strips.shape
    for begin in range(first, last, PANEL):
        n = min(PANEL, last - begin)
        for i in range(n):
            for w in range(mean.size):
                line[w] = x[begin + i, column + w] - mean[w]
            narrow_row(np.int64(line.ctypes.data), line.size, np.int64(rows[i].ctypes.data), rows.shape[1])
        a, b = np.int64(rows.ctypes.data), np.int64(strips.ctypes.data)
        multiply(tiles, a, 4 * words, n, b, 64 * words, n_strips, scores, words, np.int64(1))
        for i in range(n):
            vector = x[begin + i, column : column + mean.size]
            codes[begin + i, code] = _nearest(scores[i], half_norms, vector, mean, longest, entries)


@compiled(fastmath=FASTMATH, error_model="numpy")
def _pack_entries(entries, mean, lines, line, strips, half_norms):
    """Entries without their mean -> strips, and half their squared norms, inf beyond the last; the largest norm.

    lines (16, W) float32 and line (words,) uint32 are scratch.
    """
    n_codes, width = entries.shape
    mean[:] = f32(0)
    for k in range(n_codes):
        for w in range(width):
            mean[w] += entries[k, w]
    for w in range(width):
        mean[w] /= f32(n_codes)
    half_norms[n_codes:] = f32(np.inf)
    most, at = f32(0), np.empty(16, np.int64)
    addresses(np.int64(lines.ctypes.data), 4 * width, at[:0], at)
    for s in range(strips.shape[0]):
        n = max(0, min(16, n_codes - 16 * s))
        for j in range(n):
            centred, square = lines[j], f32(0)
            for w in range(width):
                centred[w] = entries[16 * s + j, w] - mean[w]
                square += centred[w] * centred[w]
            half_norms[16 * s + j] = f32(0.5) * square
            most = max(most, square)
        pack_keys(at[:n], width, line, strips[s : s + 1])
    return np.sqrt(most)


@njit(fastmath=FASTMATH)
def _nearest(scores, half_norms, vector, mean, longest, entries):
    """The lowest index of least float64 distance among the entries that bfloat16 cannot tell from the nearest."""
    square = f32(0)
    for w in range(vector.size):
        square += (vector[w] - mean[w]) * (vector[w] - mean[w])
    lowest = i32(0x7FFFFFFF)
    for k in range(scores.size):
        scores[k] = half_norms[k] - scores[k]
        lowest = i32(min(lowest, ordered_bits(scores[k])))
    limit = from_ordered_bits(lowest) + f32(2) * _error(vector.size, np.sqrt(square), longest)
    first, n_close = i32(scores.size), i32(0)
    for k in range(scores.size):
        close = scores[k] <= limit
        first = i32(min(first, i32(k) if close else i32(scores.size)))
        n_close = i32(n_close + i32(close))
    if n_close == 0:
        return i32(0)  # no score is finite
    return first if n_close == 1 else i32(_of_close(scores, limit, first, vector, entries))


@njit(fastmath={"reassoc", "contract"})
def _of_close(scores, limit, first, vector, entries):
    """`_nearest` among the entries, from `first` on, whose scores are within the limit."""
    least, chosen = np.inf, first
    for k in range(first, entries.shape[0]):
        if scores[k] <= limit:
            distance = 0.0
            for w in range(vector.size):
                difference = np.float64(vector[w]) - np.float64(entries[k, w])
                distance += difference * difference
            if distance < least:
                least, chosen = distance, k
    return chosen


@njit
def _error(width, norm, longest):
    """A bound for the error of a score half_norm - x . e.

    Each factor is rounded by at most 2^-8 of itself, so x . e by 2^-7 |x| |e|; float32 sums add width 2^-23
    (|x| + |e|) |e|, and what is below float32's normal numbers counts as zero.
    """
    rounding = f32(2.0**-7 + 2.0**-15) * norm + f32((width + 8) * 2.0**-23) * (norm + longest)
    return rounding * longest + f32(width * 2.0**-126)
