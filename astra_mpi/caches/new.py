"""The new tokens of one pass: whose they are, where they stand, and which keys stay on this rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class NewTokens:
    """A row for each; a sequence's rows follow each other in the order of their positions."""

    sequences: np.ndarray  # (n,) int64
    positions: np.ndarray  # (n,) int64
    keeps: np.ndarray  # (n,) bool, whether its key and value stay here

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def several(self) -> bool:
        """Whether some sequence has more than one."""
        return bool((self.sequences[1:] == self.sequences[:-1]).any())

    @cached_property
    def behind(self) -> np.ndarray:
        """(n,) kept keys of the same sequence that come after a token, which does not see them."""
        kept = self.keeps.astype(np.int64)
        if not self.several:
            return np.zeros_like(kept)
        total, first = kept.cumsum(), np.flatnonzero(np.diff(self.sequences, prepend=-1))
        counts = np.diff([*first, len(kept)])
        last = np.repeat(total[first + counts - 1], counts)  # of each sequence
        return last - total
