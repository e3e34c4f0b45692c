"""Drafts of one generation, on a rank that samples: what is guessed, how much of it is checked, what was right."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from astra_mpi.decode.drafts import MOST_DRAFTS, Guess, Guesses
from astra_mpi.decode.drafts.pace import Pace, Rates
from astra_mpi.network.clock import WallClock

if TYPE_CHECKING:
    from astra_mpi.decode.request import Request
    from astra_mpi.decode.tokens import Tokens

#: guesses that take time and did not pay are tried again after so many passes, then twice as many, so many times; each
#: time that many tokens
_REST, _TRIES, _PROBE = 8, 5, 2


class Drafting:
    """Of the sequences that this rank samples."""

    def __init__(self, request: Request, prompts: dict[int, np.ndarray], room: np.ndarray, clock: WallClock) -> None:
        """prompts: ids (T,) of each sequence; room (B,): ids that each may get."""
        self.request, self.prompts, self.room = request, prompts, room
        self.clock, self.pace = clock, Pace()
        self._rests = self._tries = 0
        self._drafting_s = 0.0
        self._seen = dict.fromkeys(prompts, 0)  # ids of each sequence that were learnt from
        self._checked: dict[int, int] = {}  # drafts of each sequence in the pass under way
        self.drafted = self.accepted = self.n = 0  # n: checks of a sequence, one per pass

    def go_on(self, tokens: Tokens, sequences: np.ndarray) -> None:
        """After `sequences` got their ids of a pass: learn from these, and draft what the next pass checks."""
        start_s = self.clock.now()
        for s in sequences.tolist():
            new = tokens.ids[s, self._seen[s] : tokens.counts[s]].tolist()
            if self._seen[s]:
                self.n += 1
                self.drafted += self._checked.get(s, 0)
                self.accepted += len(new) - 1
            self._seen[s] += len(new)
            for grade, right in self.guesses.learn(s, new):
                self.rates.note(grade, right)
        tokens.drafts[sequences] = -1
        going = [s for s in sequences.tolist() if not tokens.ended[s]]
        for s, ids in zip(going, self._drafts(tokens, going), strict=True):
            tokens.drafts[s, : len(ids)] = ids
            self._checked[s] = len(ids)
        self._drafting_s = self.clock.now() - start_s

    @cached_property
    def guesses(self) -> Guesses:
        """Opened when they are first needed, which may take as long as a prompt."""
        assert self.request.draft is not None
        return self.request.draft.open(self.request.sample, self.prompts, self.room)

    @cached_property
    def rates(self) -> Rates:
        return Rates(self.guesses.expected)

    def _drafts(self, tokens: Tokens, sequences: list[int]) -> list[list[int]]:
        """What to check of each."""
        assert self.request.draft is not None
        n, most = len(sequences), tokens.drafts.shape[1]
        spare = 1 + MOST_DRAFTS - n  # rows of a compiled call
        left = [max(min(most, spare, int(tokens.room[s] - tokens.counts[s]) - 1), 0) for s in sequences]
        if not self.request.draft.free:
            wanted = self._wanted(n, min(max(left, default=0), spare // max(n, 1)))
            left = [min(wanted, room) for room in left]
        if max(left, default=0) < 1:
            return [[] for _ in sequences]
        start_s = self.clock.now()
        guessed = self.guesses.guess(sequences, left)
        self.pace.guessed(max(left), self.clock.now() - start_s)
        counts = self.pace.worth([self._chances(guess) for guess in guessed], n, spare)
        return [guess.ids[:count] for guess, count in zip(guessed, counts, strict=True)]

    def _wanted(self, n: int, most: int) -> int:
        """Of guesses that take time, so many for each of n sequences; none for a while where they did not pay."""
        if self._rests:
            self._rests -= 1
            return 0
        wanted = self.pace.wanted(self.rates.mean, n, most)
        if wanted or not self.pace.ready(n):
            return wanted
        if self._tries == _TRIES:
            return 0
        self._tries += 1
        self._rests = _REST << self._tries
        return min(_PROBE, most)

    def _chances(self, guess: Guess) -> list[float]:
        return np.cumprod([self.rates.of(grade) for grade in guess.grades]).tolist()

    def took(self, rows: int, n: int, seconds: float) -> None:
        """A pass with so many rows of n sequences, and the drafts after it."""
        self.pace.took(rows, seconds - self._drafting_s, plain=rows == n)
