"""The subspace encoder: entries are searched in the leading principal subspace of what is quantised.

Projecting a vector costs D d multiply-adds and searching d K M, instead of D K M (docs/explanation/equations.md).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from typing import Any

import numpy as np

from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.fit import energy, refine
from astra_mpi.config import require

#: largest accepted growth of the squared error on held-out vectors
MAX_GROWTH = 0.01
#: with encoder "auto", largest accepted share of the exact search's multiply-adds
MAX_COST = 0.75
STEP = 16  # widths tried are multiples of this: whole vector registers


def with_subspace(
    codebook: Codebook, x: np.ndarray, held_out: np.ndarray, encoder: str, kernels: Any, anyway: bool = False
) -> Codebook:
    """The codebook with the narrowest principal subspace of x (n, D) that costs at most MAX_GROWTH on held_out (m, D).

    Its entries are then refitted to the codes that this search gives, where that lowers the error further.
    encoder: "auto" leaves the codebook exact where no subspace saves enough, or with `anyway`, where all of the space
    would have to be searched after a projection, takes the widest that does; "subspace" takes one at any width, and
    raises InputError without held-out vectors to choose it by.
    """
    require(
        len(held_out) > 0 or encoder == "auto",
        "too few activations to choose a subspace by; give more calibration data or take encoder exact",
    )
    widths = _widths(codebook, encoder)
    if not widths or len(held_out) == 0:
        return codebook
    directions = principal_directions(x)
    error = _error(codebook, held_out, kernels)

    def projected(width: int) -> Codebook:
        return replace(codebook, basis=directions[:, :width])

    def growth(book: Codebook) -> float:
        return _error(book, held_out, kernels) / error - 1

    # the error falls with the width but for noise, and the width that is found has been tried
    best = bisect_left(widths, True, key=lambda width: growth(projected(width)) <= MAX_GROWTH)
    if best == len(widths) and not anyway:
        return codebook
    best = min(best, len(widths) - 1)
    narrow = projected(widths[best])
    # entries fitted to few samples may suit held-out vectors less
    growths = {growth(book): book for book in (refine(narrow, x, kernels), narrow)}
    least = min(growths)
    return replace(growths[least], error_growth=least)


def principal_directions(x: np.ndarray) -> np.ndarray:
    """(D, D) float32 orthonormal columns: directions of the samples x (n, D) by descending variance."""
    x = x - x.mean(axis=0, dtype=np.float64).astype(np.float32)
    _, vectors = np.linalg.eigh((x.T @ x).astype(np.float64))
    return vectors[:, ::-1].astype(np.float32)


def _widths(codebook: Codebook, encoder: str) -> list[int]:
    """Ascending widths to try: below D, and for "auto" those that save enough."""
    full, entries = codebook.width, codebook.n_codes * codebook.size
    widths = [*range(STEP, full, STEP), full]
    if encoder == "subspace":
        return widths
    return [d for d in widths if d * (full + entries) <= MAX_COST * full * entries]


def _error(codebook: Codebook, x: np.ndarray, kernels: Any) -> float:
    """||x - x^||^2, not below the smallest number, so that it may be divided by."""
    error = energy(x - codebook.decode(codebook.encode(x, kernels), kernels))
    return max(error, float(np.finfo(np.float64).tiny))
