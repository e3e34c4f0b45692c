"""The metric of codes that also serve later blocks: what a prediction misses now is carried on into the next states.

An error e of a state changes the keys and values of its block by e W, and those of the blocks after it by about as
much, as far as the prediction carries it on: G_i = sum_j DECAY^(j - i) W_j W_j^T, j = i .. i + AHEAD - 1, where the
columns of W_j for keys, and those for values, are over the standard deviation of what they give on data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: blocks that count, and how much less each counts than the one before it
AHEAD, DECAY = 5, 0.7
#: of the largest eigenvalue, the least that any direction counts
FLOOR = 3e-3


class Metric(NamedTuple):
    """Distances after multiplication with `to` are those that count."""

    to: np.ndarray  # (D, D) float64
    back: np.ndarray  # (D, D): to @ back = 1


def ahead_metric(weighings: Sequence[np.ndarray]) -> Metric:
    """Of a block and those after it, as many as count: what errors of each count (D, D), symmetric."""
    weights = np.zeros_like(weighings[0])
    for ahead, weighing in enumerate(weighings[:AHEAD]):
        weights += DECAY**ahead * weighing
    values, vectors = np.linalg.eigh(weights)
    roots = np.sqrt(np.maximum(values, max(FLOOR * values[-1], np.finfo(np.float64).tiny)))
    roots /= np.sqrt(np.mean(roots**2))
    return Metric(vectors * roots, (vectors / roots).T)


def plain_metric(width: int) -> Metric:
    """Distance as it is."""
    return Metric(np.eye(width), np.eye(width))


def keys_values_weighing(weight: np.ndarray, kv: np.ndarray) -> np.ndarray:
    """W_j W_j^T (D, D) of the weights (D, 2 d_kv) of keys and values, which give kv (n, 2 d_kv)."""
    scaled = []
    for part, given in zip(np.split(weight.astype(np.float64), 2, axis=1), np.split(kv, 2, axis=1), strict=True):
        deviation = np.sqrt(given.var(axis=0, dtype=np.float64).sum())
        scaled.append(part / max(float(deviation), np.finfo(np.float64).tiny))
    whole = np.concatenate(scaled, axis=1)
    return whole @ whole.T
