"""How much of an answer hangs on roundings, row by row: the yardstick for ranks that compute in narrow types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import numpy as np

from astra_mpi.oracle.layers import Array
from astra_mpi.oracle.reference import OracleResult
from astra_mpi.oracle.tolerance import Tolerance

#: the largest of a few draws says little of the tail beyond
_FACTOR = 3.0
#: of means, which vary less
_FACTOR_OF_MEANS = 2.0
#: passes with a little noise, and after these at most so many with roundings by chance
_FEW, _BY_CHANCE = 2, 6


def off_by(got: Array, ref: Array) -> Array:
    """Differences of rows (n, width), relative to the largest magnitude of `ref`."""
    largest: float = np.abs(ref).max(initial=0)
    return np.abs(got - ref) / (largest or 1.0)


class Spread:
    """Of one sequence: the largest differences between the oracle's pass and passes that round otherwise."""

    def __init__(self, expected: OracleResult, floor: Tolerance) -> None:
        self.expected, self.floor = expected, floor
        self._answer, self._mean = 0.0, 0.0
        self._rows = np.zeros(len(expected.hidden))
        self._sites = [np.zeros(len(site)) for site in expected.sites]

    def widen(self, drawn: OracleResult) -> None:
        """Take one more pass into account."""
        ref = self.expected
        answer, hidden = off_by(drawn.output, ref.output), off_by(drawn.hidden, ref.hidden)
        self._answer = max(self._answer, float(answer.max(initial=0)))
        self._rows = np.maximum(self._rows, hidden.max(axis=1, initial=0))
        if hidden.size:
            self._mean = max(self._mean, float(hidden.mean()), float(answer.mean()))
        self._sites = [np.maximum(*pair) for pair in zip(self._sites, map(_apart, drawn.sites, ref.sites), strict=True)]

    @property
    def answer(self) -> float:
        """What is accepted of the answer's largest difference."""
        return self.floor.difference + _FACTOR * self._answer

    @property
    def rows(self) -> Array:
        """The same of each row of hidden states. A row that a few draws happened not to move may err as most do."""
        usual = float(np.median(self._rows)) if len(self._rows) else 0.0
        return self.floor.difference + _FACTOR * np.maximum(self._rows, usual)

    @property
    def mean(self) -> float:
        return self.floor.mean + _FACTOR_OF_MEANS * self._mean

    @property
    def gaps(self) -> list[Array]:
        """What is accepted of the gap of each token's code or rounded numbers, per block."""
        return [self.floor.gap + _FACTOR * site for site in self._sites]


class Spreads:
    """Of all sequences. make: the oracle's pass of each as ranks round, or otherwise: from a seed, perhaps by chance.
    rounded: False where no activation is, so that the floor alone is accepted."""

    def __init__(self, make: Callable[..., Sequence[OracleResult]], floor: Tolerance, rounded: bool) -> None:
        self._make, self._most, self._made = make, _BY_CHANCE if rounded else 0, 0
        self.near = [Spread(want, floor) for want in make()]
        for seed in range(_FEW if rounded else 0):
            self._widen(self.near, seed, by_chance=False)
        self.by_chance = [copy(spread) for spread in self.near]

    def widen(self) -> bool:
        """Take one more pass with roundings by chance into `by_chance`; False: there have been enough."""
        if self._made == self._most:
            return False
        self._widen(self.by_chance, _FEW + self._made, by_chance=True)
        self._made += 1
        return True

    def _widen(self, spreads: list[Spread], seed: int, by_chance: bool) -> None:
        for spread, drawn in zip(spreads, self._make(seed=seed, by_chance=by_chance), strict=True):
            spread.widen(drawn)


def _apart(rows: Array, ref: Array) -> Array:
    """(T,): how far rows (T, width) are from others, relative to these: by the norm or by the largest number."""
    by_norm, by_largest = (
        np.linalg.norm(rows - ref, order, axis=1) / np.maximum(np.linalg.norm(ref, order, axis=1), 1e-30)
        for order in (2, np.inf)
    )
    return np.maximum(by_norm, by_largest)


def largest_excess(pairs: Sequence[tuple[Array | float, Array | float]]) -> tuple[float, float]:
    """The largest of differences over what is accepted of them, and that which is accepted there; NaN if one is NaN."""
    worst, accepted = -1.0, 0.0
    for found, allowed in pairs:
        over = np.atleast_1d(np.asarray(found, np.float64) / allowed)
        if over.size and not over.max() <= worst:
            worst = float(over.max())
            accepted = float(np.broadcast_to(allowed, over.shape).flat[int(np.argmax(over))])
            if np.isnan(worst):
                break
    return max(worst, 0.0), accepted
