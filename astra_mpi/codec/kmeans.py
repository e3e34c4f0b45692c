"""Lloyd's k-means in float32: how codebooks start from activations (arXiv 2505.19342, codebook initialisation)."""

from __future__ import annotations

from typing import Any

import numpy as np

MIN_GAIN = 1e-3  # stop when an iteration lowers the squared error by less than this share
ENOUGH = 16  # samples per entry with which a part of them stands for all


def kmeans(
    x: np.ndarray, n_entries: int, seed: int | np.random.Generator, kernels: Any, max_iterations: int = 25
) -> np.ndarray:
    """Entries (K, W) float32 that minimise the squared error of x (n, W) float32, K = n_entries; n >= 1.

    Starts from K random samples; an entry that loses all its samples moves to the sample with the largest error. With
    fewer samples than entries, the samples are repeated: the repeats are never chosen, as ties go to the lowest index.
    With enough samples, half of the iterations with every second one and a third with all find as low an error as all
    iterations with all samples (docs/explanation/storage.md). The same seed, data and threads give the same entries.
    """
    rng = np.random.default_rng(seed)
    n = len(x)
    if n <= n_entries:
        return x[np.arange(n_entries) % n].astype(np.float32)
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    x = x - mean  # a common offset would cost the float32 distances their precision
    entries = x[rng.choice(n, n_entries, replace=False)]
    if n < 2 * ENOUGH * n_entries:
        return _lloyd(x, entries, kernels, max_iterations) + mean
    entries = _lloyd(np.ascontiguousarray(x[::2]), entries, kernels, max_iterations // 2)
    return _lloyd(x, entries, kernels, max(1, max_iterations // 3)) + mean


def full_passes(max_iterations: int) -> float:
    """How many times `kmeans` goes over all of many samples."""
    return max_iterations // 2 / 2 + max(1, max_iterations // 3)


def _lloyd(x: np.ndarray, entries: np.ndarray, kernels: Any, max_iterations: int) -> np.ndarray:
    """Entries (K, W) after Lloyd's iterations on samples x (n, W) of mean zero."""
    energy = np.einsum("nw,nw->", x, x, dtype=np.float64)
    previous = np.inf
    for _ in range(max_iterations):
        codes = assign(x, entries, kernels)
        entries, counts = means(x, codes, entries, kernels)
        error = energy - counts @ np.einsum("kw,kw->k", entries, entries, dtype=np.float64)
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            repair(x, codes, entries, empty)
        elif error >= (1 - MIN_GAIN) * previous:
            break
        previous = error
    return entries


def assign(x: np.ndarray, entries: np.ndarray, kernels: Any) -> np.ndarray:
    """Code (n,) of the entry (K, W) nearest to each row of x (n, W)."""
    half_norms = np.einsum("kw,kw->k", entries, entries) / 2
    # a new array each time, which kernels may keep packed: `repair` changes entries in place
    return kernels.encode_grouped(x, entries[None], half_norms[None])[:, 0]


def means(x: np.ndarray, codes: np.ndarray, entries: np.ndarray, kernels: Any) -> tuple[np.ndarray, np.ndarray]:
    """(entries, counts): the mean (K, W) of the rows of x (n, W) with each code (n,), and how many there are (K,).

    A code that no row has keeps its entry.
    """
    counts = np.bincount(codes, minlength=len(entries))
    sums = kernels.code_sums(x, codes, len(entries))
    divisors = np.maximum(counts, 1).astype(np.float32)[:, None]
    return np.where(counts[:, None] > 0, sums / divisors, entries), counts


def repair(x: np.ndarray, codes: np.ndarray, entries: np.ndarray, empty: np.ndarray) -> None:
    """Move the `empty` entries, in place, into the codes with the largest errors: to the farthest row of each.

    One row per code, because activations hold exact repeats: the rows farthest of all may be a single point.
    """
    rest = x - entries[codes]
    errors = np.einsum("nw,nw->n", rest, rest)
    total = np.bincount(codes, weights=errors, minlength=len(entries))  # (K,)
    crowded = np.argsort(-total, kind="stable")[: min(len(empty), np.count_nonzero(total))]
    order = np.lexsort((-errors, codes))
    first = np.searchsorted(codes[order], crowded)
    entries[empty[: len(crowded)]] = x[order[first]]
