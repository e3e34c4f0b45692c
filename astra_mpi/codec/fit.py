"""Fitting the codebook of one quantised vector to samples of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from astra_mpi.codec.codebook import Codebook, pad
from astra_mpi.codec.kmeans import MIN_GAIN, kmeans, means
from astra_mpi.config import CodecConfig, require

STAGE_ITERATIONS = 10  # of k-means per stage: after that, sweeps over all stages gain more per second
SWEEPS = 5

Progress = Callable[[int, int], None]  # (codebooks fitted, codebooks in all)


def fit_codebook(
    x: np.ndarray, config: CodecConfig, seed: int, kernels: Any, progress: Progress | None = None
) -> Codebook:
    """The codebook of `config` fitted to samples x (n, D) float32: k-means per group or stage, stages then refined.

    Deterministic by seed. Raises InputError without samples or with NaN or infinite ones.
    """
    require(len(x) > 0, "there are no activations to fit a codebook to; give calibration data")
    require(bool(np.isfinite(x).all()), "the activations hold NaN or infinite values; check the model's weights")
    rng = np.random.default_rng(seed)
    report = progress or (lambda done, total: None)
    if config.kind == "grouped":
        return _fit_grouped(x, config, rng, kernels, report)
    book, codes = _fit_residual(x, config, rng, kernels, report)
    return refine(book, x, kernels, codes)


def energy(x: np.ndarray) -> float:
    """||x||^2 of x (n, D), summed in float64."""
    return float(np.einsum("nd,nd->", x, x, dtype=np.float64))


def _fit_grouped(
    x: np.ndarray, config: CodecConfig, rng: np.random.Generator, kernels: Any, report: Progress
) -> Codebook:
    groups = np.split(pad(x, config.groups), config.groups, axis=1)  # G of (n, W)
    entries = []
    for group in groups:
        entries.append(kmeans(group, config.codebook_size, rng, kernels))
        report(len(entries), config.groups)
    return Codebook("grouped", np.stack(entries), x.shape[1])


def _fit_residual(
    x: np.ndarray, config: CodecConfig, rng: np.random.Generator, kernels: Any, report: Progress
) -> tuple[Codebook, np.ndarray]:
    """Greedy stages, each fitted to what the stages before it left, and the codes (n, M) of x."""
    entries, codes = [], []
    rest = np.array(x, order="C")
    for stage in range(config.stages):
        entries.append(kmeans(rest, config.codebook_size, rng, kernels, STAGE_ITERATIONS))
        last = Codebook("residual", entries[-1][None], x.shape[1])
        codes.append(last.encode(rest, kernels))
        kernels.add_entries(rest, -entries[-1], codes[-1][:, 0])
        report(stage + 1, config.stages)
    return Codebook("residual", np.stack(entries), x.shape[1]), np.concatenate(codes, axis=1)


def refine(codebook: Codebook, x: np.ndarray, kernels: Any, codes: np.ndarray | None = None) -> Codebook:
    """Sweeps over all stages of a codebook of full width, each followed by a new encoding, while they lower the error.

    Greedy stages know nothing of the later ones. On all-MiniLM-L6-v2 activations (8 stages of 256 entries, 32768
    samples) five sweeps lower the error by 6 to 11 percent, of held-out samples by 5 to 7. codes (n, C): of x.
    """
    codes = codebook.encode(x, kernels) if codes is None else codes
    rest = x - codebook.decode(codes, kernels)
    error = energy(rest)
    for _ in range(SWEEPS):
        candidate = replace(codebook, entries=_sweep(codebook.entries, codes, rest, kernels))
        codes = candidate.encode(x, kernels)
        rest = x - candidate.decode(codes, kernels)
        previous, error = error, energy(rest)
        if error < previous:
            codebook = candidate
        if error >= (1 - MIN_GAIN) * previous:
            break
    return codebook


def _sweep(entries: np.ndarray, codes: np.ndarray, rest: np.ndarray, kernels: Any) -> np.ndarray:
    """New entries (M, K, D), stage by stage the means of what all other stages leave, at fixed codes (n, M).

    rest (n, D) = x - x^ is kept up to date and so overwritten.
    """
    entries = entries.copy()
    for m, stage in enumerate(entries):
        kernels.add_entries(rest, stage, codes[:, m])
        stage[...] = means(rest, codes[:, m], stage, kernels)[0]
        kernels.add_entries(rest, -stage, codes[:, m])
    return entries
