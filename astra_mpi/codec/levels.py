"""Levels of scalar quantisers (Lloyd, Max), and how many bits each of many numbers is worth."""

from __future__ import annotations

import heapq

import numpy as np

SWEEPS = 20
MIN_GAIN = 1e-3  # stop when a sweep lowers the squared error by less than this share


class Column:
    """One number's samples, ordered, and their sums: what levels are found from."""

    def __init__(self, samples: np.ndarray) -> None:
        """samples (n,), of mean zero."""
        self.ordered = np.sort(samples).astype(np.float64)
        self.sums = np.concatenate([[0.0], np.cumsum(self.ordered)])
        self.energy = float(self.ordered @ self.ordered)

    def levels(self, n_levels: int) -> tuple[np.ndarray, float]:
        """(levels (n_levels,) ascending, sum of the squared errors): Lloyd's sweeps over runs of the samples."""
        n, levels = len(self.ordered), self._start(n_levels)
        error = np.inf
        for _ in range(SWEEPS):
            middles = (levels[:-1] + levels[1:]) / 2
            ends = np.concatenate([[0], self.ordered.searchsorted(middles, "right"), [n]])
            counts = np.diff(ends)
            levels = np.where(counts > 0, np.diff(self.sums[ends]) / np.maximum(counts, 1), levels)
            before, error = error, max(self.energy - float(counts @ levels**2), 0.0)
            if error >= (1 - MIN_GAIN) * before:
                break
        return levels, error

    def _start(self, n_levels: int) -> np.ndarray:
        """(n_levels,) ascending: as dense as the cube root of the samples' density (Panter and Dite)."""
        n = len(self.ordered)
        knots = self.ordered[np.linspace(0, n - 1, min(n, 4 * n_levels + 1)).astype(np.int64)]
        mass = np.concatenate([[0.0], np.cumsum(np.diff(knots) ** (2 / 3))])
        if mass[-1] == 0:
            return np.full(n_levels, knots[0])
        return np.interp((np.arange(n_levels) + 0.5) / n_levels * mass[-1], mass, knots)


def spread(samples: np.ndarray, total: int, most: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """samples (n, C) of mean zero -> (bits (C,) int64 of each column, its levels).

    The `total` bits go one after another where they lower the squared error most, up to `most` for a column. Levels are
    found only for numbers of bits that come near.
    """
    columns = [Column(column) for column in samples.T]
    bits = np.zeros(len(columns), np.int64)
    found = [(np.zeros(1), column.energy) for column in columns]
    heap: list[tuple[float, int, tuple[np.ndarray, float]]] = []

    def offer(c: int) -> None:
        if bits[c] < most:
            better = columns[c].levels(2 << int(bits[c]))
            heapq.heappush(heap, (better[1] - found[c][1], c, better))

    for c in range(len(columns)):
        offer(c)
    for _ in range(total):
        _, c, found[c] = heapq.heappop(heap)
        bits[c] += 1
        offer(c)
    return bits, [levels for levels, _ in found]
