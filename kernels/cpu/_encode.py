"""Nearest-entry search: BLAS for x . e, then one Numba pass that picks the code.

The scores half_norm - x . e are float32 and depend in their last bits on the tile that BLAS works in. Entries whose
scores are closer than that rounding are compared again by their exact distance, so a code does not depend on how many
tokens are encoded together, and equal entries give the lowest index.
"""

import numpy as np
from numba import njit

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._distance import exact_distance
from astra_mpi.kernels.cpu._math import FASTMATH, f32, from_ordered_bits, i32, ordered_bits
from astra_mpi.kernels.cpu._matmul import matmul
from astra_mpi.kernels.reference import code_dtype

Array = np.ndarray

#: Scores of one tile: 1 MiB, so that they are still in the cache when the pass reads them.
TILE = 1 << 18


def encode_grouped(x: Array, entries: Array, half_norms: Array) -> Array:
    """Codes (n, G) of x (n, G*W); see reference.encode_grouped."""
    n_groups, n_codes, width = entries.shape
    x = np.ascontiguousarray(x)
    codes = np.empty((len(x), n_groups), np.uint16)
    for rows, scores in _tiles(len(x), n_codes):
        for g in range(n_groups):
            column = g * width
            matmul(x[rows, column : column + width], entries[g].T, scores)  # (rows, W) (W, K) -> (rows, K)
            _pick(scores, half_norms[g], x, rows.start, column, entries[g], codes, g)
    return codes.astype(code_dtype(n_codes), copy=False)


def encode_residual(x: Array, entries: Array, half_norms: Array) -> Array:
    """Codes (n, M) of x (n, W); see reference.encode_residual."""
    n_stages, n_codes, _ = entries.shape
    residual = np.array(x, order="C")
    codes = np.empty((len(x), n_stages), np.uint16)
    for rows, scores in _tiles(len(x), n_codes):
        for m in range(n_stages):
            matmul(residual[rows], entries[m].T, scores)  # (rows, W) (W, K) -> (rows, K)
            _pick(scores, half_norms[m], residual, rows.start, 0, entries[m], codes, m)
            _subtract(residual[rows], entries[m], codes[rows], m)
    return codes.astype(code_dtype(n_codes), copy=False)


def _tiles(n, n_codes):
    """Slices of the n rows, each with the (rows, K) scratch for its scores."""
    size = min(n, max(16, TILE // n_codes))
    scratch = np.empty((size, n_codes), np.float32)
    for start in range(0, n, max(size, 1)):
        stop = min(start + size, n)
        yield slice(start, stop), scratch[: stop - start]


@compiled(fastmath=FASTMATH, error_model="numpy")
def _pick(scores, half_norms, x, first_row, first_column, entries, codes, column):
    """codes[first_row + i, column] = argmin_k half_norms[k] - scores[i, k], exact among near ties."""
    n_rows, n_codes = scores.shape
    width = entries.shape[1]
    for i in range(n_rows):
        s = scores[i]
        vector = x[first_row + i, first_column : first_column + width]
        lowest = i32(0x7FFFFFFF)
        for k in range(n_codes):
            lowest = i32(min(lowest, ordered_bits(half_norms[k] - s[k])))
        best = from_ordered_bits(lowest)
        limit = best + rounding(vector, best)
        first, n_close = i32(n_codes), i32(0)
        for k in range(n_codes):
            close = half_norms[k] - s[k] <= limit
            first = i32(min(first, i32(k) if close else i32(n_codes)))
            n_close = i32(n_close + i32(close))
        if n_close > 1:
            first = nearest_of_close(vector, entries, half_norms, s, limit)
        codes[first_row + i, column] = first if first < n_codes else 0  # no score is finite: NaN in, code 0 out


@njit(fastmath=FASTMATH)
def rounding(vector, best):
    """A bound for the error of two scores near the best one.

    The float32 error of half_norm - x . e is at most about W u (|x| |e| + |e|^2 / 2), with u = 2^-24 and, near the
    best score, |e| <= |x| + |x - e|, where |x - e|^2 = |x|^2 + 2 best.
    """
    square = f32(0)
    for w in range(vector.size):
        square += vector[w] * vector[w]
    reach = np.sqrt(square) + np.sqrt(max(square + f32(2) * best, f32(0)))
    return f32((vector.size + 4) * 2.0**-23 * 1.5) * reach * reach


@compiled(error_model="numpy")
def nearest_of_close(vector, entries, half_norms, scores, limit):
    """The lowest index of least float64 distance among the entries whose score is within the limit."""
    least, chosen = np.inf, 0
    for k in range(entries.shape[0]):
        if half_norms[k] - scores[k] <= limit:
            distance = exact_distance(vector, entries[k])
            if distance < least:
                least, chosen = distance, k
    return chosen


@compiled(error_model="numpy")
def _subtract(residual, entries, codes, stage):
    """residual[i] -= entries[codes[i, stage]]."""
    for i in range(residual.shape[0]):
        entry = entries[codes[i, stage]]
        for w in range(residual.shape[1]):
            residual[i, w] -= entry[w]
