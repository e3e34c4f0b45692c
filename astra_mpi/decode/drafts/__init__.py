"""Drafts: cheap guesses at the next tokens, several of which one pass of the model checks.

docs/explanation/drafts.md has the method, and what it gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from astra_mpi.costs.decode import MOST_ROWS

if TYPE_CHECKING:
    import numpy as np

    from astra_mpi.decode.sampling import Sample

#: tokens that are drafted of a sequence at most: with its last token, the rows of a compiled call
MOST_DRAFTS = MOST_ROWS - 1
#: how sure a guess can be, from 0 on
N_GRADES = 12


class Guess(NamedTuple):
    """Of the next tokens of a sequence."""

    ids: list[int]
    grades: list[int]  # how sure each is, 0 .. N_GRADES - 1; how often such guesses are right is learnt


class Guesses(Protocol):
    """Guesses of one generation, on a rank, for the sequences that it samples."""

    #: how often a guess of each grade is expected to be right, before any was checked
    expected: tuple[float, ...]

    def learn(self, sequence: int, ids: list[int]) -> list[tuple[int, bool]]:
        """These ids come next. -> grades of guesses that this has decided, and whether they were right."""

    def guess(self, sequences: list[int], most: list[int]) -> list[Guess]:
        """How each of these sequences goes on, by so many tokens at most."""


@runtime_checkable
class Draft(Protocol):
    """Where drafts come from. The same on all ranks."""

    #: for reports
    name: str
    #: whether guesses take no time to speak of, so that they are made also where none is checked
    free: bool

    def open(self, sample: Sample, prompts: dict[int, np.ndarray], room: np.ndarray) -> Guesses:
        """For sequences with these prompts (T,), which get up to room (B,) tokens, chosen by `sample`."""
