"""How many drafts pay: how often guesses are right, and what a pass takes with more rows, both as found so far."""

from __future__ import annotations

from collections import deque
from statistics import median

#: a guess of a grade that was never checked counts as so many
_WEIGHT = 4.0
#: each check lets earlier ones count less: the text changes
_FADE = 0.97
#: what a row more adds to a pass, of the time of one without drafts, before any was seen
_ROW = 0.15
#: passes of a number of rows of which the median counts
_PASSES = 7
#: drafts have to promise so much more than a pass without them
_WORTH = 1.02
#: so many passes after the last one without drafts, one goes without, so that both stay known
_STALE = 64


class Rates:
    """How often guesses of each grade are right."""

    def __init__(self, expected: tuple[float, ...]) -> None:
        self.right = [_WEIGHT * rate for rate in expected]
        self.checked = [_WEIGHT] * len(expected)
        self.mean = sum(expected) / len(expected)

    def note(self, grade: int, right: bool) -> None:
        self.right[grade] = _FADE * self.right[grade] + right
        self.checked[grade] = _FADE * self.checked[grade] + 1
        self.mean += (1 - _FADE) * (right - self.mean)

    def of(self, grade: int) -> float:
        return self.right[grade] / self.checked[grade]


class Pace:
    """Seconds of passes by their rows, and of guesses that take time."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._plain: set[int] = set()  # rows of passes without drafts
        self._n = self._plain_at = 0
        self._guess_s: deque[float] = deque(maxlen=_PASSES)

    def took(self, rows: int, seconds: float, plain: bool) -> None:
        self._n += 1
        self._seconds.setdefault(rows, deque(maxlen=_PASSES)).append(seconds)
        if plain:
            self._plain.add(rows)
            self._plain_at = self._n

    def ready(self, rows: int) -> bool:
        """Whether so many rows without drafts have been timed, and not too long ago."""
        return rows in self._plain and self._n - self._plain_at < _STALE

    def seconds(self, rows: int) -> float:
        """Of a pass: more rows take no less."""
        known = sorted((n, min(times) if len(times) < 3 else median(times)) for n, times in self._seconds.items())
        least, lower = [], float("inf")
        for n, s in reversed(known):
            lower = min(lower, s)
            least.append((n, lower))
        least.reverse()
        below = [pair for pair in least if pair[0] <= rows]
        above = [pair for pair in least if pair[0] > rows]
        if not below:
            return above[0][1]
        (n, s) = below[-1]
        if n == rows:
            return s
        if above:
            return s + (above[0][1] - s) * (rows - n) / (above[0][0] - n)
        first = least[0]
        slope = (s - first[1]) / (n - first[0]) if n > first[0] else _ROW * s
        return s + slope * (rows - n)

    def guessed(self, n: int, seconds: float) -> None:
        """n tokens of every sequence, one after another."""
        self._guess_s.append(seconds / n)

    def wanted(self, rate: float, rows: int, most: int) -> int:
        """How many tokens of each of so many sequences to guess, where this takes time, and so many in a row are right
        at this rate."""
        if not self.ready(rows):
            return 0
        guess_s = median(self._guess_s) if self._guess_s else 0.0
        best, best_k, gained, chance = _WORTH / self.seconds(rows), 0, 1.0, 1.0
        for k in range(1, most + 1):
            chance *= rate
            gained += chance
            speed = gained / (self.seconds(rows * (1 + k)) + k * guess_s)
            if speed > best:
                best, best_k = speed, k
        return best_k

    def worth(self, chances: list[list[float]], rows: int, most: int) -> list[int]:
        """How many guesses of each sequence to check; chances: of each guess that all up to it are right. rows: of the
        pass without them; most: that one pass may check."""
        counts = [0] * len(chances)
        if not self.ready(rows):
            return counts
        order = sorted((-c, s) for s, of_one in enumerate(chances) for c in of_one)[:most]
        gained, best, best_m = float(len(chances)), _WORTH * len(chances) / self.seconds(rows), 0
        for m, (chance, _) in enumerate(order, 1):
            gained -= chance
            if gained / self.seconds(rows + m) > best:
                best, best_m = gained / self.seconds(rows + m), m
        for _, s in order[:best_m]:
            counts[s] += 1
        return counts
