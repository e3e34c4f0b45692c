"""Nearest entries of some rows at a time: entries times rows, so that a row's scores lie in a lane of their own.

Entries whose scores are closer than rounding are compared again by their exact distance, as `_encode` does: codes are
the same, however many rows are encoded together.
"""

import numpy as np
from numba import njit

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._encode import nearest_of_close, rounding
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import FASTMATH, f32, i32
from astra_mpi.kernels.cpu._memory import ask
from astra_mpi.kernels.cpu._simd import LANES
from astra_mpi.kernels.cpu.dense.strip import WIDE, WIDEST, narrow_strip, wide_strip, widest_strip

#: rows that are searched together; so few that remain are not worth a vector of lanes
ROWS, _FEW_LANES = 64, 2
#: terms of scores that are added up at a time, so that turned rows stay in the first-level cache
_TERMS = 128
#: entries that are multiplied while the next ones are read
_ENTRIES = 40
#: numbers of a row that are turned at a time: lines so far apart share few places in that cache
_LINES = 64


@compiled()
def search(x, step, entries, half_norms, codes, first, last, turned, scores):
    """codes[first:last, c] of rows x (n, C step), or what the codes before c left of x (n, W) where step is 0.

    entries (C, K, W); x is overwritten with what is left. turned (W, ROWS), scores (K, ROWS): room.
    """
    width = entries.shape[2]
    for begin in range(first, last, ROWS):
        end = min(last, begin + ROWS)
        n = end - begin
        for c in range(entries.shape[0]):
            rows = x[begin:end]
            _turn(rows, c * step, width, turned)
            _multiply(entries[c], turned, scores, n)
            _pick(rows, c * step, entries[c], half_norms[c], scores, codes[begin:end], c)
            if step == 0:
                _subtract(rows, entries[c], codes[begin:end], c)


@inner()
def _turn(rows, column, width, turned):
    """Columns of rows (n, ..) -> (W, ROWS), zeros up to a whole vector."""
    n = len(rows)
    for first in range(0, width, _LINES):
        last = min(width, first + _LINES)
        for t in range(n):
            row = rows[t]
            for w in range(first, last):
                turned[w, t] = row[column + w]
        for t in range(n, (n + LANES - 1) // LANES * LANES):
            turned[first:last, t] = 0


@inner()
def _multiply(entries, turned, scores, n):
    """Scores (K, n) of entries (K, W) with turned rows (W, n)."""
    width = entries.shape[1]
    whole = n - n % LANES if n % LANES <= _FEW_LANES else n
    for w in range(0, width, _TERMS):
        _add_products(entries, w, min(_TERMS, width - w), turned, scores, whole)
    for t in range(whole, n):
        _dots(entries, turned, scores, t)


@inner()
def _add_products(entries, w, n_terms, turned, scores, n):
    """The scores of n rows, or what they gain by the terms from w on."""
    lda, begin = 4 * entries.shape[1], 1 if w == 0 else 0
    b = turned[w:].ctypes.data
    for first in range(0, entries.shape[0], _ENTRIES):
        k = min(_ENTRIES, entries.shape[0] - first)
        a, c = entries.ctypes.data + first * lda + 4 * w, scores.ctypes.data + 4 * ROWS * first
        if begin == 1:
            ask(a + _ENTRIES * lda, _ENTRIES * lda)
        if WIDE < n <= WIDEST:
            widest_strip(a, lda, k, b, 4 * ROWS, c, 4 * ROWS, n_terms, begin)
            continue
        for t in range(0, n, WIDE):
            if n - t > LANES:
                wide_strip(a, lda, k, b + 4 * t, 4 * ROWS, c + 4 * t, 4 * ROWS, n_terms, begin, 0)
            else:
                narrow_strip(a, lda, k, b + 4 * t, 4 * ROWS, c + 4 * t, 4 * ROWS, n_terms, begin)


@inner(fastmath=FASTMATH)
def _dots(entries, turned, scores, t):
    """The scores of row t alone."""
    row = turned[:, t].copy()
    for k in range(entries.shape[0]):
        entry, score = entries[k], f32(0)
        for w in range(row.size):
            score += entry[w] * row[w]
        scores[k, t] = score


@compiled(error_model="numpy")
def _pick(rows, column, entries, half_norms, scores, codes, c):
    (n, _), (k, width) = rows.shape, entries.shape
    best, second, index = np.full(ROWS, np.inf, np.float32), np.full(ROWS, np.inf, np.float32), np.zeros(ROWS, np.int32)
    lanes = (n + LANES - 1) // LANES * LANES
    for entry in range(k):
        _compare(half_norms[entry], scores[entry], i32(entry), lanes, best, second, index)
    for t in range(n):
        vector = rows[t, column : column + width]
        limit = best[t] + rounding(vector, best[t])
        codes[t, c] = index[t]
        if second[t] <= limit:
            codes[t, c] = nearest_of_close(vector, entries, half_norms, scores[:, t].copy(), limit)


@njit
def _compare(half_norm, row, entry, lanes, best, second, index):
    """The two lowest of half_norm - score of each row so far, and the entry of the lowest."""
    for t in range(lanes):
        score = half_norm - row[t]
        closer = score < best[t]
        rest = best[t] if closer else score
        second[t] = rest if rest < second[t] else second[t]
        best[t] = score if closer else best[t]
        index[t] = entry if closer else index[t]


@inner(fastmath=FASTMATH)
def _subtract(rows, entries, codes, c):
    """rows[t] -= entries[codes[t, c]]."""
    for t in range(rows.shape[0]):
        row, entry = rows[t], entries[codes[t, c]]
        for w in range(row.size):
            row[w] -= entry[w]
