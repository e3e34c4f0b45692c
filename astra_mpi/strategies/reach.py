"""Which far tokens a block needs: all of those it may see, or with a window those that lie in one.

A rank's message holds the tokens that any other rank needs, and goes to the ranks that need one of them; the others
neither wait for it nor are sent it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from astra_mpi.layout import Layout
from astra_mpi.partition import Hears, displs


@dataclass(frozen=True, eq=False)
class Reach:
    """Of one rank and one kind of block. Sent tokens: rank after rank, those of a message in order of its rows."""

    token_counts: np.ndarray  # (P,) tokens in each rank's message
    hears: Hears
    own: np.ndarray | None  # which of this rank's content tokens it sends; None: all
    sent: np.ndarray | None  # where the sent tokens lie among the gathered ones; None: they are these
    far_index: np.ndarray  # (m,) where far tokens lie in the sent ones, sequence by sequence
    far_offsets: np.ndarray  # (B + 1,)
    tokens: np.ndarray  # (m,) where they lie among the gathered ones
    far_ranks: np.ndarray  # ranks that this one hears
    owners: np.ndarray | None = None  # (m,) the rank that each far token is on; None: `whole` knows
    whole: Layout | None = None

    def far_from(self, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`far_index`, `far_offsets` and `tokens` with nothing but the tokens of `ranks`."""
        if self.whole is not None:
            index, offsets = self.whole.far_from(ranks)
            return index, offsets, index
        assert self.owners is not None
        kept = np.isin(self.owners, ranks)
        counts = np.add.reduceat(np.append(kept, False).astype(np.int64), self.far_offsets[:-1])
        counts = np.where(np.diff(self.far_offsets) > 0, counts, 0)
        return self.far_index[kept], displs(counts), self.tokens[kept]

    def spread(self, rows: np.ndarray, n_gathered: int) -> np.ndarray:
        """Rows of the sent tokens -> of all gathered ones, zeros where nothing is sent."""
        if self.sent is None:
            return rows
        every = np.zeros((n_gathered, *rows.shape[1:]), rows.dtype)
        every[self.sent] = rows
        return every


def whole_reach(layout: Layout) -> Reach:
    """Of a block that sees all that the layout lets it see."""
    if layout.sinks:
        return _without_sinks(layout)
    far = layout.far_index
    counts = layout.token_counts.copy()
    if layout.forward:
        counts[-1] = 0 if layout.size > 1 else counts[-1]
    return Reach(counts, layout.forward, None, None, far, layout.far_offsets, far, layout.far_ranks, whole=layout)


def _without_sinks(layout: Layout) -> Reach:
    """Of such a block, where the first tokens are on every rank."""
    rank_of = np.repeat(np.arange(layout.size), layout.token_counts)
    sends: np.ndarray = ~layout.gathered_sinks
    if layout.forward and layout.size > 1:
        sends = sends & (rank_of < layout.size - 1)
    far = layout.far_index
    return _of_some(layout, sends, layout.forward, far, layout.far_offsets, rank_of)


def window_reach(layout: Layout, places: np.ndarray, window: int) -> Reach:
    """Of a block with a window; places: positions of the packed tokens."""
    size, n_sequences = layout.size, len(layout.counts)
    gathered = places[layout.packed_content]  # (N,)
    rank_of = np.repeat(np.arange(size), layout.token_counts)
    sequence_of = np.concatenate([np.repeat(np.arange(n_sequences), layout.counts[:, r]) for r in range(size)])
    needs = np.zeros((size, len(gathered)), bool)
    classes = places[displs(layout.lengths + layout.n_class)[:-1]] if layout.n_class else None
    for receiver in range(size):
        queries = gathered[rank_of == receiver]
        of = sequence_of[rank_of == receiver]
        first, last = np.full(n_sequences, np.iinfo(np.int64).max // 2), np.full(n_sequences, -1)
        np.minimum.at(first, of, queries)
        np.maximum.at(last, of, queries)
        low, high, here = first[sequence_of], last[sequence_of], np.isin(sequence_of, of)
        near = here & (gathered > low - window) & (gathered < high + window)
        if layout.causal:
            near &= gathered < low
        if classes is not None and receiver < layout.replicas:
            near |= abs(gathered - classes[sequence_of]) < window
        needs[receiver] = near & (rank_of != receiver) & ~layout.gathered_sinks
    mine = needs[layout.rank]
    order = layout.sequence_order[mine[layout.sequence_order]]  # needed here, sequence by sequence in order of position
    hears = tuple(tuple(np.unique(rank_of[needs[r]]).tolist()) for r in range(size))
    offsets = displs(np.bincount(sequence_of[order], minlength=n_sequences))
    needed = np.asarray(needs.any(axis=0))
    return _of_some(layout, needed, hears, order, offsets, rank_of)


def _of_some(
    layout: Layout, sends: np.ndarray, hears: Hears, far: np.ndarray, offsets: np.ndarray, rank_of: np.ndarray
) -> Reach:
    """Where of the gathered tokens, which are on the ranks rank_of (N,), those of sends (N,) bool travel, and this rank
    sees far (m,) of them, sequence by sequence at `offsets`."""
    rank, starts, sent = layout.rank, displs(layout.token_counts), np.flatnonzero(sends)
    own = sent[(sent >= starts[rank]) & (sent < starts[rank + 1])] - starts[rank]
    heard = layout.far_ranks if isinstance(hears, bool) else np.array(hears[rank], np.int64)
    places, counts = np.cumsum(sends) - 1, np.bincount(rank_of[sent], minlength=layout.size)
    return Reach(counts, hears, own, sent, places[far], offsets, far, heard, rank_of[far])
