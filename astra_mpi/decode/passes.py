"""What one pass of decoding computes: of every sequence its last token, and the tokens that are drafted after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from astra_mpi.decode.tokens import Tokens


@dataclass(frozen=True)
class NewRows:
    """Rows of one pass, sequence after sequence."""

    sequences: np.ndarray  # (m,) that go on
    counts: np.ndarray  # (m,) rows of each: a token, and its drafts
    ids: np.ndarray  # (n,) int64
    begun: np.ndarray  # (m,) ids that each had before this pass

    @property
    def first(self) -> np.ndarray:
        """(m,) where each sequence's rows begin."""
        return np.cumsum(self.counts) - self.counts

    @property
    def row_sequences(self) -> np.ndarray:
        """(n,)"""
        return np.repeat(self.sequences, self.counts)

    @property
    def steps(self) -> np.ndarray:
        """(n,) how many tokens its sequence got before each row."""
        return np.arange(len(self.ids)) + np.repeat(self.begun - 1 - self.first, self.counts)

    def dropped(self, tokens: Tokens) -> Iterator[tuple[int, int, int]]:
        """After the pass: of each sequence the first and last step of what was drafted in vain."""
        for s, begun, count in zip(self.sequences.tolist(), self.begun.tolist(), self.counts.tolist(), strict=True):
            first, last = int(tokens.counts[s]) - 1, begun - 1 + count
            if first < last:
                yield s, first, last


def rows_of_pass(computed: np.ndarray, tokens: Tokens) -> NewRows:
    """Of the sequences `computed` those that have not ended."""
    sequences = computed[~tokens.ended[computed]]
    begun = tokens.counts[sequences]
    rows = np.concatenate([tokens.ids[sequences, np.maximum(begun - 1, 0)][:, None], tokens.drafts[sequences]], axis=1)
    there = rows >= 0
    there[:, 0] = True  # of the first pass, whose rows the prefill has computed
    return NewRows(sequences, there.sum(axis=1), rows[there].astype(np.int64), begun)
