"""Biases of scores by the distance of key and query, in buckets (T5, arXiv 1910.10683; MPNet, arXiv 2004.09297)."""

from __future__ import annotations

import numpy as np

from astra_mpi.device.xp import module_of, take


def by_distance(table: np.ndarray, furthest: int) -> np.ndarray:
    """table (buckets, H) -> (H, 2 R + 1) float32: biases at distances -R .. R of a key from its query, R = `furthest`.

    Half of the buckets are for keys behind the query. Of each half, distances up to its middle have a bucket each,
    those up to `furthest` share the others by their logarithm, and all beyond have the last.
    """
    half = len(table) // 2
    exact = half // 2
    distance = np.arange(-furthest, furthest + 1)
    apart = np.maximum(abs(distance), 1).astype(np.float32)
    grown = exact + (np.log(apart / exact) / np.log(furthest / exact) * (half - exact)).astype(np.int64)
    near = np.where(abs(distance) < exact, abs(distance), np.minimum(grown, half - 1))
    found = take(table, half * (distance > 0) + near).astype(np.float32)
    return module_of(table).ascontiguousarray(found.T)
