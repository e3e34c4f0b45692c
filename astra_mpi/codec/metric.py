"""The metric that codebooks are fitted and searched in: an error counts by what it does to keys and values.

Other ranks use a token x only through [K | V] = norm(x) W + b (`tables.Projection`). To first order, and up to the
token's own 1 / sigma, x^ instead of x changes them by (x^ - x) A with A = C diag(gamma) W, where C takes the mean away.
So codes are the nearest ones after multiplication with B (D, D), B B^T ~ A_K A_K^T / ||A_K||^2 + A_V A_V^T / ||A_V||^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from astra_mpi.codec.codebook import Codebook, Transform
from astra_mpi.codec.tables import Projection

#: per block and vector that is sent of a token (W,): G (W, W) float64, errors e count as e G e^T
Weighings = Sequence[Sequence[np.ndarray]]
#: how much a direction that changes neither keys nor values counts, over the mean of all: B has an inverse
RIDGE = 0.01


def keys_values_metric(projection: Projection) -> np.ndarray:
    """B (D, D) float64, lower triangular; the mean of all directions' weights is 1 + RIDGE."""
    norm, weight = projection.on_host()[:2]
    a = np.asarray(weight, np.float64)  # (D, 2 d_kv)
    if norm is not None:
        a = norm.weight.astype(np.float64)[:, None] * a
        a = a - a.mean(axis=0) if norm.centred else a
    parts = [part / max(float(np.linalg.norm(part)), np.finfo(np.float64).tiny) for part in np.split(a, 2, axis=1)]
    a = np.concatenate(parts, axis=1)
    return root(a @ a.T)


def root(weighing: np.ndarray) -> np.ndarray:
    """B (W, W) float64, lower triangular, with B B^T ~ weighing (W, W) of a mean weight of 1, and a ridge."""
    mean = max(float(np.trace(weighing)) / len(weighing), np.finfo(np.float64).tiny)
    return np.linalg.cholesky(weighing / mean + RIDGE * np.eye(len(weighing)))


def pulled_back(codebook: Codebook, metric: np.ndarray) -> Codebook:
    """A codebook of x B as one of x, which is searched as the former was; metric B (D, D)."""
    back = np.linalg.inv(metric)
    if codebook.transform is not None:
        return transformed_back(codebook, metric, back)
    entries = (codebook.entries.astype(np.float64) @ back).astype(np.float32)
    basis = metric if codebook.basis is None else metric @ codebook.basis
    return replace(codebook, entries=entries, basis=basis.astype(np.float32))


def transformed_back(codebook: Codebook, to: np.ndarray, back: np.ndarray) -> Codebook:
    """A codebook with a transform, of x `to`, as one of x; to (D, d) and back (d, D), whose product is 1."""
    transform, head = codebook.transform, codebook.head
    assert transform is not None
    forward, behind, offset = (array.astype(np.float64) for array in transform)
    if head is not None:
        entries = (head.entries.astype(np.float64) @ back).astype(np.float32)
        head = Codebook(head.kind, entries, len(to), to.astype(np.float32))
    mine = Transform(to @ forward, behind @ back, offset @ back)
    return Codebook(codebook.kind, codebook.entries, len(to), transform=mine, bits=codebook.bits, head=head)
