"""What a comparison found, and how much of a difference rounding explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: of a float32 computation of a sound conversion, over the largest value: 1e-6 was measured on models of 6 to 30 blocks
FLOOR = 1e-5
#: times the difference of the reference in float32 from itself in float64, where that is more: an ill-conditioned model
OWN_ROUNDING = 16
#: more than this is a wrong answer, whatever rounds
CEILING = 1e-3


@dataclass(frozen=True)
class Finding:
    """One comparison."""

    what: str
    difference: float | None = None  # largest, absolute; None where equality was asked for
    relative: float = 0.0  # over the largest value of the reference
    tolerance: float = FLOOR  # of `relative`
    wrong: str = ""  # what was found, if it is wrong although no number says so
    note: str = ""

    @property
    def passed(self) -> bool:
        # written so that NaN fails
        return not self.wrong and (self.difference is None or self.relative <= self.tolerance)

    @property
    def why(self) -> str:
        """In words, what is wrong."""
        return self.wrong or f"difference {self.relative:.1e} of the largest value (tolerance {self.tolerance:.0e})"

    def __str__(self) -> str:
        if self.wrong:
            return f"{self.what}: DIFFERENT, {self.wrong}"
        if self.difference is None:
            return f"{self.what}: {self.note or 'equal'}"
        size = f"{self.difference:.1e}, {self.relative:.1e} of the largest value (tolerance {self.tolerance:.0e})"
        verdict = "" if self.passed else "DIFFERENT, "
        return f"{self.what}: {verdict}largest difference {size}" + (f"; {self.note}" if self.note else "")


def tolerance(own: float) -> float:
    """What rounding explains, over the largest value; own: of the reference in float32 from itself in float64."""
    return min(CEILING, max(FLOOR, OWN_ROUNDING * own))


def relative(got: Any, expected: Any) -> tuple[float, float]:
    """-> largest difference of two arrays of one shape, absolute and over the largest magnitude expected."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if not expected.size:
        return 0.0, 0.0
    difference, largest = float(np.abs(got - expected).max()), float(np.abs(expected).max())
    return difference, difference / max(largest, np.finfo(np.float64).tiny)


def held_against(what: str, got: Any, expected: Any, allowed: float, note: str = "") -> Finding:
    """Arrays of numbers, `allowed` over the largest value."""
    if np.shape(got) != np.shape(expected):
        return Finding(what, wrong=f"shape {np.shape(got)} instead of {np.shape(expected)}")
    return Finding(what, *relative(got, expected), tolerance=allowed, note=note)


def equal_rows(what: str, texts: Sequence[str], got: Sequence[Any], expected: Sequence[Any]) -> Finding:
    """Things that must be the same, one per text; the first that is not is told."""
    for text, ours, theirs in zip(texts, got, expected, strict=True):
        if ours != theirs:
            return Finding(what, wrong=f"of {text[:40]!r}, {_short(ours)} instead of {_short(theirs)}")
    return Finding(what)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
