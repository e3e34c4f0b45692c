"""Scalar codes: the level nearest to every number, found by halving."""

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.reference import code_dtype

Array = np.ndarray


def encode_levels(x: Array, levels: Array) -> Array:
    """Codes (n, C) of x (n, C); see reference.encode_levels."""
    n_levels = levels.shape[1]
    middles = np.full((len(levels), n_levels), np.inf, np.float32)  # between a level and the next
    np.add(levels[:, :-1], levels[:, 1:], out=middles[:, :-1])
    middles *= np.float32(0.5)
    lowest = np.zeros(levels.shape, np.uint16)  # of levels that are equal
    np.copyto(lowest[:, 1:], np.arange(1, n_levels, dtype=np.uint16), where=levels[:, 1:] > levels[:, :-1])
    np.maximum.accumulate(lowest, axis=1, out=lowest)
    codes = np.empty(x.shape, np.uint16)
    _encode(np.ascontiguousarray(x), middles, lowest, codes)
    return codes.astype(code_dtype(n_levels), copy=False)


@compiled()
def _encode(x, middles, lowest, codes):
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            low, n_left, value = 0, middles.shape[1], x[i, c]
            while n_left > 1:  # the first middle that is not below the value lies in low .. low + n_left - 1
                half = n_left >> 1
                low += half if middles[c, low + half - 1] < value else 0
                n_left -= half
            codes[i, c] = lowest[c, low]
