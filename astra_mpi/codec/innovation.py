"""Codebooks of what a prediction misses, fitted in a metric and in its leading principal directions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from astra_mpi.codec.ahead import Metric
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.fit import fit_codebook
from astra_mpi.codec.kind import Progress
from astra_mpi.codec.metric import transformed_back
from astra_mpi.codec.subspace import STEP


def fit_innovation(
    x: np.ndarray,
    metric: Metric,
    config: CodecConfig,
    seed: int,
    kernels: Any,
    progress: Progress | None = None,
    embedded: bool = False,
) -> Codebook:
    """The codebook of `config` for samples x (n, D) float32, nearest in `metric`.

    Kinds of full width are fitted and searched in the leading directions that as many bits can serve (`served`), with
    encoder "exact" in all of them; the others by plain distance. Entries that reach further follow single samples: on
    SmolLM2 (8 stages, 7168 samples) they have 5% more error of held-out vectors in all 576 directions than in 96.
    """
    if config.rule.transforms:
        book = fit_codebook((x @ metric.to).astype(np.float32), config, seed, kernels, progress)
        return transformed_back(book, metric.to, metric.back)
    if not config.full_width:
        return fit_codebook(x, config, seed, kernels, progress, embedded)
    seen = x @ metric.to.astype(np.float32)
    variances, directions = np.linalg.eigh((seen.T @ seen).astype(np.float64))
    variances, directions = np.maximum(variances[::-1], 0), directions[:, ::-1]
    n = len(variances) if config.encoder == "exact" else served(variances, config.rule.vector_bits(config))
    basis = directions[:, :n]
    book = fit_codebook(seen @ basis.astype(np.float32), config, seed, kernels, progress, embedded)
    entries = book.entries.astype(np.float64) @ (basis.T @ metric.back)
    whole = Codebook(config.kind, entries.astype(np.float32), x.shape[1], (metric.to @ basis).astype(np.float32))
    return replace(whole, ordinary=book.ordinary)


def served(variances: np.ndarray, bits: int) -> int:
    """Of independent normal numbers with descending variances (D,), how many get some of the bits where these lower the
    error most (reverse water-filling): those above the level that all of these are brought down to. A multiple of STEP.
    """
    logs = np.log2(np.maximum(variances, variances[0] * 1e-12 + np.finfo(np.float64).tiny))
    counts = np.arange(1, len(logs) + 1)
    levels = (np.cumsum(logs) - 2 * bits) / counts  # of the first n, if they share the bits
    n = int(np.count_nonzero(logs > levels))
    return min(len(logs), max(1, -(-n // STEP)) * STEP)
