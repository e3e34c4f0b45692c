"""How much of an answer hangs on roundings, row by row: the yardstick for ranks that compute in narrow types."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from astra_mpi.oracle.layers import Array
from astra_mpi.oracle.reference import OracleResult
from astra_mpi.oracle.tolerance import Tolerance

#: the largest of a few draws says little of the tail beyond; roundings by chance err by 1.2 times those of ranks
_FACTOR = 3.0
#: of means, which vary less
_FACTOR_OF_MEANS = 2.0
#: passes with roundings by chance: at first, and at most, of what the first few do not explain
_FEW, _MANY = 2, 8


def off_by(got: Array, ref: Array) -> Array:
    """Differences of rows (n, width), relative to the largest magnitude of `ref`."""
    largest: float = np.abs(ref).max(initial=0)
    return np.abs(got - ref) / (largest or 1.0)


class Spread:
    """Of one sequence: the largest differences between the oracle's pass and passes with roundings by chance."""

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
    """Of all sequences. make: the oracle's pass of each, with roundings by chance from a seed, or None: as ranks round.
    by_chance: False where no activation is rounded, so that the floor alone is accepted."""

    def __init__(self, make: Callable[[int | None], Sequence[OracleResult]], floor: Tolerance, by_chance: bool) -> None:
        self._make, self._made, self._most = make, 0, _MANY if by_chance else 0
        self.each = [Spread(want, floor) for want in make(None)]
        for _ in range(_FEW):
            self.widen()

    def widen(self) -> bool:
        """Take one more pass into account; False: there have been enough."""
        if self._made == self._most:
            return False
        for spread, drawn in zip(self.each, self._make(self._made), strict=True):
            spread.widen(drawn)
        self._made += 1
        return True


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
