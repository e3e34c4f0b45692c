"""What every rank expects of a token from what it has seen of it so far: the codes stand for the rest alone.

A state is what ranks hold of a token's attention input: exact in block 0, for every rank has the inputs, and from then
on the prediction and what the codes added to it. A prediction may also take what entered block 0 of the token and of
those before it. Sender and receivers compute the same states, bit by bit (docs/explanation/predicted.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from astra_mpi.codec.ahead import Metric
from astra_mpi.codec.config import MAX_INPUTS
from astra_mpi.config import require
from astra_mpi.device.xp import module_of
from astra_mpi.kernels.integers import Integers, Moved, integers
from astra_mpi.partition import displs, ranges

#: added to the variance of every direction of states, over the mean: one that hardly varies is not followed
RIDGE = 1e-4
#: ranks that are tried, and how much more may be left unexplained than by a whole matrix
RANKS, MAX_LOSS = (32, 64, 96, 128, 192, 256, 384), 0.05
#: times the width of a state, the most that x has
MOST = 1 + MAX_INPUTS
_ROWS = 4096  # whose moments are added up at a time


@dataclass(frozen=True, eq=False)
class Predictor:
    """From a token's state s in one block to what enters the attention of the next: keep s + x F_1 .. F_m + b.

    x is s and, side by side, what `inputs_before` gives of the token. Factors are multiplied as `weights`.

    Raises InputError on factors that do not fit each other, or are not finite.
    """

    factors: tuple[np.ndarray, ...]  # float32 ((1 + n) D, D), or ((1 + n) D, r) and (r, D), where x has n inputs
    bias: np.ndarray  # (D,) float32
    keep: float = 1.0  # of the state; below 1, what codes erred by fades

    def __post_init__(self) -> None:
        factors = tuple(np.ascontiguousarray(factor, np.float32) for factor in self.factors)
        bias = np.ascontiguousarray(self.bias, np.float32)
        shapes = [factor.shape for factor in factors]
        good = len(shapes) in (1, 2) and bias.ndim == 1 and all(len(shape) == 2 for shape in shapes)
        good = (
            good
            and shapes[-1][1] == len(bias) > 0
            and shapes[0][0] in range(len(bias), MOST * len(bias) + 1, len(bias))
        )
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
    def n_inputs(self) -> int:
        """Tokens whose inputs are in x."""
        return self.factors[0].shape[0] // self.width - 1

    @property
    def rank(self) -> int:
        """r; D where there is one factor."""
        return self.factors[0].shape[1]

    @cached_property
    def weights(self) -> tuple[Integers, ...]:
        """The factors as integers."""
        return tuple(integers(factor) for factor in self.factors)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All numbers, in the order in which digests take them."""
        return *self.factors, self.bias, np.array([self.keep], np.float32)

    def make_ready(self, xp: Any, kernels: Any) -> None:
        """Round and pack the factors, which the first prediction would otherwise do. xp: numpy or cupy."""
        row = xp.zeros((1, self.width), np.float32)
        inputs = xp.zeros((1, self.n_inputs * self.width), np.float32) if self.n_inputs else None
        self.predict(row, inputs, kernels)

    def predict(self, state: np.ndarray, inputs: np.ndarray | None, kernels: Any) -> np.ndarray:
        """States (n, D) and inputs (n, n_inputs D), float32 -> predictions (n, D), a new array.

        A row depends on its own state and inputs alone. inputs: of `inputs_before`, None where there are none.
        """
        xp, parts = module_of(state), [state] if inputs is None else [state, inputs]
        for weights in self.weights[:-1]:
            parts = [kernels.integer_product(parts, weights, xp.empty((len(state), weights.shape[1]), np.float32))]
        moved = Moved(state, self.keep, self.bias)
        predicted: np.ndarray = kernels.integer_product(
            parts, self.weights[-1], xp.empty(state.shape, np.float32), moved
        )
        return predicted


def known(state: np.ndarray, inputs: np.ndarray | None) -> np.ndarray:
    """(n, (1 + n_inputs) D): what maps multiply."""
    return state if inputs is None else module_of(state).concatenate([state, inputs], axis=1)


def inputs_before(rows: np.ndarray, lengths: np.ndarray, n: int) -> np.ndarray | None:
    """What enters block 0 (T, D), one sequence of lengths (B,) after another -> (T, n D): of a token and of the n - 1
    before it, nearest first, zeros before a sequence's first; None: n is 0."""
    if n == 0:
        return None
    xp = module_of(rows)
    found = xp.zeros((len(rows), n, rows.shape[1]), np.float32)
    starts = displs(lengths)[:-1]
    for k in range(n):
        found[k:, k] = rows[: max(len(rows) - k, 0)]
        found[xp.asarray(ranges(starts, np.minimum(lengths, k))), k] = 0
    return found.reshape(len(rows), n * rows.shape[1])


def fit_predictor(
    state: np.ndarray, target: np.ndarray, rank: int | None, metric: Metric, inputs: np.ndarray | None = None
) -> Predictor:
    """The predictor of target (n, D) from state (n, D) and inputs (n, ..) of least squares with a ridge, in float64.

    rank: of its linear map, the one that keeps most of what the whole map explains, in `metric`; 0: the whole map;
    None: the smallest of RANKS that leaves MAX_LOSS more unexplained at most, where that is less work than the whole.
    """
    x, width = known(state, inputs), state.shape[1]
    mean, goal = (of.mean(axis=0, dtype=np.float64) for of in (x, target))
    gram, cross, own = _moments(x, target, mean, goal)
    ridged = gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    to = metric.to

    def traced(moments: np.ndarray) -> float:
        return float(np.einsum("ij,ik,kj->", to, moments, to, optimize=True))

    of_state = slice(0, width)
    keep = traced(cross[of_state]) / max(traced(ridged[of_state, of_state]), np.finfo(np.float64).tiny)
    cross_left = cross - keep * gram[:, of_state]
    weights = np.linalg.solve(ridged, cross_left)
    explained = to.T @ cross_left.T @ weights @ to
    gains, directions = np.linalg.eigh((explained + explained.T) / 2)
    gains, directions = gains[::-1], directions[:, ::-1]
    moved = cross[of_state] + cross[of_state].T
    unexplained = traced(own - keep * moved + keep**2 * gram[of_state, of_state]) - float(gains.sum())
    rank = _enough(gains, unexplained, len(weights)) if rank is None else rank
    if 0 < rank < width:
        best = directions[:, :rank]
        factors: tuple[np.ndarray, ...] = (weights @ to @ best, best.T @ metric.back)
    else:
        factors, keep = (weights + (keep - 1) * np.eye(*weights.shape),), 1.0
    for_mean = mean
    for factor in factors:
        for_mean = for_mean @ factor
    single = tuple(factor.astype(np.float32) for factor in factors)
    return Predictor(single, (goal - keep * mean[of_state] - for_mean).astype(np.float32), float(np.float32(keep)))


def _enough(gains: np.ndarray, unexplained: float, n_known: int) -> int:
    """A rank, or 0 for the whole map; gains (D,): what each direction explains, in descending order. n_known: numbers
    that a token is foretold from."""
    lost = gains.sum() - np.cumsum(gains)
    less_work = n_known * len(gains) / (n_known + len(gains))
    fits = [rank for rank in RANKS if rank < less_work and lost[rank - 1] <= MAX_LOSS * unexplained]
    return min(fits, default=0)


def _moments(
    x: np.ndarray, target: np.ndarray, mean: np.ndarray, goal: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums over n of centred rows s of x (n, W) and t of target (n, D): s s (W, W), s t (W, D), t t (D, D)."""
    n_known, width = x.shape[1], target.shape[1]
    gram, cross, own = (np.zeros(shape) for shape in ((n_known, n_known), (n_known, width), (width, width)))
    for first in range(0, len(x), _ROWS):
        s = x[first : first + _ROWS].astype(np.float64) - mean
        t = target[first : first + _ROWS].astype(np.float64) - goal
        gram += s.T @ s
        cross += s.T @ t
        own += t.T @ t
    return gram, cross, own
