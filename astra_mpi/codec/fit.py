"""Fitting the codebook of one quantised vector to samples of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.kind import Progress
from astra_mpi.codec.kmeans import MIN_GAIN, means
from astra_mpi.config import require

SWEEPS = 5


def fit_codebook(
    x: np.ndarray,
    config: CodecConfig,
    seed: int,
    kernels: Any,
    progress: Progress | None = None,
    embedded: bool = False,
) -> Codebook:
    """The codebook of `config` fitted to samples x (n, D) float32, as its kind does it.

    embedded: so that the first codes are a codec without the others, where the kind can. Deterministic by seed. Raises
    InputError without samples or with NaN or infinite ones.
    """
    require(len(x) > 0, "there are no activations to fit a codebook to; give calibration data")
    require(bool(np.isfinite(x).all()), "the activations hold NaN or infinite values; check the model's weights")
    rng = np.random.default_rng(seed)
    fit = config.rule.fit_embedded if embedded else config.rule.fit
    return fit(x, config, rng, kernels, progress or (lambda done, total: None))


def energy(x: np.ndarray) -> float:
    """||x||^2 of x (n, D), summed in float64."""
    return float(np.einsum("nd,nd->", x, x, dtype=np.float64))


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
