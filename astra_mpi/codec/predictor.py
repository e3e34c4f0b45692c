"""What every rank expects of a token from what it has seen of it so far: the codes stand for the rest alone.

A state is what ranks hold of a token's attention input: exact in block 0, for every rank has the inputs, and from then
on the prediction and what the codes added to it. Sender and receivers compute the same states, bit by bit
(docs/explanation/predicted.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from astra_mpi.codec.ahead import Metric
from astra_mpi.config import require
from astra_mpi.device.xp import beside, module_of

#: added to the variance of every direction of states, over the mean: one that hardly varies is not followed
RIDGE = 1e-4
#: ranks that are tried, and how much more may be left unexplained than by a whole matrix
RANKS, MAX_LOSS = (32, 64, 96, 128, 192, 256), 0.05
_ROWS = 4096  # whose moments are added up at a time


@dataclass(frozen=True, eq=False)
class Predictor:
    """From a token's state in one block to what enters the attention of the next: keep s + s F_1 .. F_m + b.

    Raises InputError on factors that do not fit each other, or are not finite.
    """

    factors: tuple[np.ndarray, ...]  # float32 (D, D), or (D, r) and (r, D)
    bias: np.ndarray  # (D,) float32
    keep: float = 1.0  # of the state; below 1, what codes erred by fades

    def __post_init__(self) -> None:
        factors = tuple(np.ascontiguousarray(factor, np.float32) for factor in self.factors)
        bias = np.ascontiguousarray(self.bias, np.float32)
        shapes = [factor.shape for factor in factors]
        good = len(shapes) in (1, 2) and bias.ndim == 1 and all(len(shape) == 2 for shape in shapes)
        good = good and shapes[0][0] == shapes[-1][1] == len(bias)
        good = good and all(a[1] == b[0] >= 1 for a, b in pairwise(shapes))
        require(good, f"a predictor has factors {shapes} and a bias {bias.shape}; calibrate again")
        finite = all(bool(np.isfinite(array).all()) for array in (*factors, bias, np.array(self.keep)))
        require(finite, "a predictor has NaN or infinite numbers; calibrate again")
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "bias", bias)

    @property
    def width(self) -> int:
        """D."""
        return len(self.bias)

    @property
    def rank(self) -> int:
        """r; D where there is one factor."""
        return self.factors[0].shape[1]

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All numbers, in the order in which digests take them."""
        return *self.factors, self.bias, np.array([self.keep], np.float32)

    def predict(self, state: np.ndarray, kernels: Any) -> np.ndarray:
        """States (n, D) float32 -> predictions (n, D), a new array; a row depends on its own state alone."""
        xp, x = module_of(state), state
        for factor in self.factors:
            x = kernels.ordered_product(x, beside(x, factor), xp.empty((len(x), factor.shape[1]), np.float32))
        x += state * np.float32(self.keep)
        x += beside(x, self.bias)
        return x


def fit_predictor(state: np.ndarray, target: np.ndarray, rank: int | None, metric: Metric) -> Predictor:
    """The predictor of target (n, D) from state (n, D) of least squares with a ridge, in float64.

    rank: of its linear map, the one that keeps most of what the whole map explains, in `metric`; 0: the whole map;
    None: the smallest of RANKS that leaves MAX_LOSS more unexplained at most, where that is less work than the whole.
    """
    mean, goal = (x.mean(axis=0, dtype=np.float64) for x in (state, target))
    gram, cross, own = _moments(state, target, mean, goal)
    ridged = gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    to = metric.to

    def traced(moments: np.ndarray) -> float:
        return float(np.einsum("ij,ik,kj->", to, moments, to, optimize=True))

    keep = traced(cross) / max(traced(ridged), np.finfo(np.float64).tiny)
    cross_left = cross - keep * gram
    weights = np.linalg.solve(ridged, cross_left)
    explained = to.T @ cross_left.T @ weights @ to
    gains, directions = np.linalg.eigh((explained + explained.T) / 2)
    gains, directions = gains[::-1], directions[:, ::-1]
    unexplained = traced(own - keep * (cross + cross.T) + keep**2 * gram) - float(gains.sum())
    rank = _enough(gains, unexplained) if rank is None else rank
    if 0 < rank < len(weights):
        best = directions[:, :rank]
        factors: tuple[np.ndarray, ...] = (weights @ to @ best, best.T @ metric.back)
    else:
        factors, keep = (weights + (keep - 1) * np.eye(len(weights)),), 1.0
    for_mean = mean
    for factor in factors:
        for_mean = for_mean @ factor
    single = tuple(factor.astype(np.float32) for factor in factors)
    return Predictor(single, (goal - keep * mean - for_mean).astype(np.float32), float(np.float32(keep)))


def _enough(gains: np.ndarray, unexplained: float) -> int:
    """A rank, or 0 for the whole map; gains (D,): what each direction explains, in descending order."""
    lost = gains.sum() - np.cumsum(gains)
    fits = [rank for rank in RANKS if rank < len(gains) / 2 and lost[rank - 1] <= MAX_LOSS * unexplained]
    return min(fits, default=0)


def _moments(
    state: np.ndarray, target: np.ndarray, mean: np.ndarray, goal: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums (D, D) over n of centred states s and targets t: s s, s t, t t."""
    width = state.shape[1]
    gram, cross, own = np.zeros((3, width, width))
    for first in range(0, len(state), _ROWS):
        s = state[first : first + _ROWS].astype(np.float64) - mean
        t = target[first : first + _ROWS].astype(np.float64) - goal
        gram += s.T @ s
        cross += s.T @ t
        own += t.T @ t
    return gram, cross, own
