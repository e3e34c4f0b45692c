"""One strategy's answers held against the oracle's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from astra_mpi.oracle.reference import OracleResult
from astra_mpi.oracle.spread import Spread, Spreads, largest_excess, off_by

#: of how many rows one may hang on a rounding
_ONE_OF = 50


@dataclass(frozen=True)
class Check:
    """What one strategy's comparison found, over all sequences and ranks."""

    strategy: str
    max_difference: float  # of answers and hidden states, over the largest magnitude
    mean_difference: float
    flips: int  # codes or rounded numbers that are not the oracle's choice: near-ties unless the gap is large
    worst_gap: float
    contributed_bytes: int
    formula_bytes: int
    passed: bool
    reason: str  # why it failed or was skipped, else empty
    note: str = ""  # what its answers are good for, where that is not everything
    tolerance: float = 0.0  # of the difference of the row that is closest to its own, or furthest above it
    gap_tolerance: float = 0.0  # the same of gaps
    excess: float = 0.0  # the largest difference, mean or gap over what is accepted of it; above 1: failed
    sensitive: int = 0  # rows that differ by more than most roundings explain

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def worst(checks: Sequence[Check]) -> Check:
    """The checks of one strategy on several replicas as one: the one that failed, or came nearest to it, with the bytes
    and flips of all."""
    first = max(checks, key=lambda check: (not check.passed, check.excess))
    sums = {name: sum(getattr(c, name) for c in checks) for name in ("flips", "contributed_bytes", "formula_bytes")}
    return replace(first, **sums)


@dataclass(frozen=True)
class Measured:
    """Answers (P, B, width) of all ranks, and hidden states (B, rows, width)."""

    answers: np.ndarray
    hidden: np.ndarray

    def excesses(self, spreads: Sequence[Spread]) -> dict[str, tuple[float, float]]:
        """Of differences, means and gaps: the largest over what is accepted of it, and what is accepted there."""
        differences: list[tuple[Any, Any]] = []
        gaps: list[tuple[Any, Any]] = []
        means = []
        for s, spread in enumerate(spreads):
            want = spread.expected
            answer = off_by(self.answers[:, s], want.output)
            rows = off_by(self.hidden[s, : len(want.hidden)], want.hidden)
            if answer.size:
                differences.append((answer.max(axis=1), spread.answer))
            if rows.size:
                differences.append((rows.max(axis=1), spread.rows))
                means.append((float(np.mean([answer.mean(), rows.mean()])), spread.mean))
            gaps += zip(want.gaps, spread.gaps, strict=True)
        mean = np.mean(means, axis=0) if means else np.array([0.0, 1.0])
        return {
            "difference": largest_excess(differences),
            "mean": largest_excess([(mean[0], mean[1])]),
            "gap": largest_excess(gaps),
        }

    def n_off(self, spreads: Sequence[Spread]) -> int:
        """Rows that differ by more than is accepted, or whose codes or rounded numbers do; of answers none."""
        n = 0
        for s, spread in enumerate(spreads):
            want = spread.expected
            rows = off_by(self.hidden[s, : len(want.hidden)], want.hidden)
            n += int((~(rows.max(axis=1, initial=0) <= spread.rows)).sum())
            tokens = [~(gaps <= accepted) for gaps, accepted in zip(want.gaps, spread.gaps, strict=True)]
            n += int(np.any(tokens, axis=0).sum()) if tokens else 0
        return n

    def largest(self, expected: Sequence[OracleResult]) -> tuple[float, float]:
        """The largest difference, and the mean of all."""
        off = []
        for s, want in enumerate(expected):
            off += [off_by(self.answers[:, s], want.output)]
            off += [off_by(self.hidden[s, : len(want.hidden)], want.hidden)]
        off = [array for array in off if array.size]
        if not off:
            return 0.0, 0.0
        return float(np.max([array.max() for array in off])), float(np.mean([array.mean() for array in off]))


def judge(spec: str, note: str, report: dict[str, Any], spreads: Spreads, measured: Measured) -> Check:
    """report: of the pass that was measured.

    A few rows may hang on a rounding: what is accepted of these is measured once more, with roundings by chance. If
    more rows are off, it is no rounding.
    """
    found, sensitive = measured.excesses(spreads.near), measured.n_off(spreads.near)
    if sensitive <= max(1, sum(len(spread.expected.hidden) for spread in spreads.near) // _ONE_OF):
        while not all(excess <= 1 for excess, _ in found.values()) and spreads.widen():
            found = measured.excesses(spreads.by_chance)
    expected = [spread.expected for spread in spreads.near]
    largest, mean = measured.largest(expected)
    reasons = [_reason(what, *found[what]) for what in found if not found[what][0] <= 1]  # so that NaN fails
    contributed, formula = sum(report["contributed_bytes"]), sum(report["formula_bytes"])
    if report["contributed_bytes"] != report["formula_bytes"]:
        reasons.append(f"contributed {contributed} bytes, formula {formula}")
    return Check(
        spec,
        largest,
        mean,
        sum(r.flips for r in expected),
        float(np.max([0.0, *(r.worst_gap for r in expected)])),
        contributed,
        formula,
        not reasons,
        "; ".join(reasons),
        note,
        found["difference"][1],
        found["gap"][1],
        float(np.max([excess for excess, _ in found.values()])),
        sensitive,
    )


def _reason(what: str, excess: float, accepted: float) -> str:
    value = excess * accepted
    if what == "gap":
        return f"a code or a rounded number is not the nearest (gap {value:.1e}, tolerance {accepted:.0e})"
    on_average = " on average" if what == "mean" else ""
    return f"differs from the oracle by {value:.1e}{on_average} (tolerance {accepted:.0e})"
