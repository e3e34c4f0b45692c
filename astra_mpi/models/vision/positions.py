"""Positions of patches for images of another size than a model was trained on: PyTorch's bicubic resampling."""

from __future__ import annotations

import math

import numpy as np


def interpolated(rows: np.ndarray, grid: tuple[int, int], n_class: int, antialias: bool) -> np.ndarray:
    """Positions (1, n_class + side * side, D) -> (n_class + height * width, D); those of class tokens stay.

    ValueError if the trained grid is no square. Same grid: as they are.
    """
    rows = rows.reshape(-1, rows.shape[-1])
    side = math.isqrt(len(rows) - n_class)
    if side * side != len(rows) - n_class:
        raise ValueError(f"{len(rows) - n_class} positions are no square")
    if grid == (side, side):
        return rows
    patches = rows[n_class:].reshape(side, side, -1).astype(np.float64)
    down, across = (_weights(side, n, antialias) for n in grid)
    resized = np.einsum("ij,jkd->ikd", down, patches)
    resized = np.einsum("ij,kjd->kid", across, resized)
    return np.concatenate([rows[:n_class], resized.reshape(-1, rows.shape[1]).astype(rows.dtype)])


def _weights(n_in: int, n_out: int, antialias: bool) -> np.ndarray:
    """(n_out, n_in): what each output takes of each input, `align_corners` false."""
    weights = np.zeros((n_out, n_in))
    ratio = n_in / n_out
    for i in range(n_out):
        if antialias:
            stretch = max(ratio, 1.0)
            centre = ratio * (i + 0.5)
            first, last = max(int(centre - 2 * stretch + 0.5), 0), min(int(centre + 2 * stretch + 0.5), n_in)
            taps = np.array([_cubic((j - centre + 0.5) / stretch, -0.5) for j in range(first, last)])
            weights[i, first:last] = taps / taps.sum()
            continue
        place = ratio * (i + 0.5) - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[i, min(max(j, 0), n_in - 1)] += _cubic(place - j, -0.75)
    return weights


def _cubic(x: float, a: float) -> float:
    """Keys' cubic convolution kernel."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0
