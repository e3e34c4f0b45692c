"""Codebooks of what a prediction misses, fitted in a metric and in its leading principal directions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from astra_mpi.codec.ahead import Metric
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.fit import energy, fit_codebook
from astra_mpi.codec.kind import Progress
from astra_mpi.codec.metric import transformed_back
from astra_mpi.codec.subspace import STEP
from astra_mpi.config import CodecConfig

#: largest accepted share of the samples' energy outside of the subspace that is searched
MAX_LEFT_OUT = 0.02


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

    Kinds of full width are fitted and searched in the fewest leading directions that leave out MAX_LEFT_OUT at most,
    with encoder "exact" in all of them; the others by plain distance.
    """
    if config.rule.transforms:
        book = fit_codebook((x @ metric.to).astype(np.float32), config, seed, kernels, progress)
        return transformed_back(book, metric.to, metric.back)
    if not config.full_width:
        return fit_codebook(x, config, seed, kernels, progress, embedded)
    seen = x @ metric.to.astype(np.float32)
    values, vectors = np.linalg.eigh((seen.T @ seen).astype(np.float64))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    n = len(values) if config.encoder == "exact" else _width(values)
    basis = vectors[:, :n]
    book = fit_codebook(seen @ basis.astype(np.float32), config, seed, kernels, progress, embedded)
    left_out = float(values[n:].sum())
    entries = book.entries.astype(np.float64) @ (basis.T @ metric.back)
    whole = Codebook(config.kind, entries.astype(np.float32), x.shape[1], (metric.to @ basis).astype(np.float32))
    whole = replace(whole, ordinary=book.ordinary)
    return whole if n == len(values) else _with_growth(whole, x, left_out, kernels)


def _width(values: np.ndarray) -> int:
    """Of descending energies (D,) of directions, how many are searched: a multiple of STEP, or all."""
    left_out = 1 - np.cumsum(values) / max(float(values.sum()), np.finfo(np.float64).tiny)
    enough = int(np.argmax(left_out <= MAX_LEFT_OUT)) + 1
    return min(len(values), -(-enough // STEP) * STEP)


def _with_growth(book: Codebook, x: np.ndarray, left_out: float, kernels: Any) -> Codebook:
    """With the growth of the error that the subspace brings at most: all that lies outside of it."""
    assert book.basis is not None
    rest = (x - book.decode(book.encode(x, kernels), kernels)) @ book.basis
    inside = max(energy(rest), float(np.finfo(np.float64).tiny))
    return replace(book, error_growth=left_out / inside)
