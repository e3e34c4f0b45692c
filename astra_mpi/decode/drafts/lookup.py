"""Drafts without a model: what came after the same tokens before, in the prompt or in the text so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from astra_mpi.decode.drafts import N_GRADES, Guess

if TYPE_CHECKING:
    import numpy as np

    from astra_mpi.decode.sampling import Sample

#: tokens by which a place is found; of those that it finds, the latest counts
_SIZES = (4, 3, 2, 1)


class Places:
    """One sequence, and where in it some tokens last came before others."""

    def __init__(self, ids: list[int]) -> None:
        self.ids: list[int] = []
        self._after: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in _SIZES}
        self._read(ids)

    def _read(self, ids: list[int]) -> None:
        """Many at once."""
        self.ids = list(ids)
        for n, after in self._after.items():
            after.update(
                zip(zip(*(self.ids[i:] for i in range(n)), strict=False), range(n, len(self.ids)), strict=False)
            )

    def append(self, token: int) -> None:
        end = len(self.ids)
        for n, after in self._after.items():
            if end >= n:
                after[tuple(self.ids[-n:])] = end
        self.ids.append(token)

    def find(self) -> tuple[int, int]:
        """Where the text goes on after the tokens that it now ends with, and how many of these are the same there, up
        to N_GRADES; 0 of none."""
        for n in _SIZES:
            place = self._after[n].get(tuple(self.ids[-n:])) if len(self.ids) >= n else None
            if place is not None:
                while n < N_GRADES and n < place and self.ids[place - 1 - n] == self.ids[-1 - n]:
                    n += 1
                return place, n
        return 0, 0


class LookupGuesses:
    """A guess's grade is the number of tokens before it that are the same at both places, less one."""

    expected = tuple(0.93 - 0.85 * 0.75**i for i in range(N_GRADES))

    def __init__(self, prompts: dict[int, np.ndarray]) -> None:
        self._places = {s: Places(ids.tolist()) for s, ids in prompts.items()}

    def learn(self, sequence: int, ids: list[int]) -> list[tuple[int, bool]]:
        places, decided = self._places[sequence], []
        for token in ids:
            place, same = places.find()
            if same:
                decided.append((same - 1, places.ids[place] == token))
            places.append(token)
        return decided

    def guess(self, sequences: list[int], most: list[int]) -> list[Guess]:
        return [self._guess(self._places[s], n) for s, n in zip(sequences, most, strict=True)]

    def _guess(self, places: Places, n: int) -> Guess:
        place, same = places.find()
        if not same:
            return Guess([], [])
        ids = places.ids[place : place + n]
        while len(ids) < n:  # the text repeats what is being guessed
            ids.append(ids[place + len(ids) - len(places.ids)])
        return Guess(ids, [min(same - 1 + i, N_GRADES - 1) for i in range(n)])


class Lookup:
    """What came after the same tokens before."""

    name, free = "lookup", True

    def open(self, sample: Sample, prompts: dict[int, np.ndarray], room: np.ndarray) -> LookupGuesses:
        return LookupGuesses(prompts)
