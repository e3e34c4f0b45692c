"""Which rows a rank answers for, and where far tokens lie among those that all ranks gather."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from astra_mpi.device.xp import module_of, take
from astra_mpi.partition import displs, ranges


@dataclass(frozen=True, eq=False)
class Layout:
    """What one rank holds of a batch of B sequences, and where the far tokens lie.

    Rows of a rank: sequence after sequence, each its replicas of first tokens (if there are any), then its content
    tokens. Gathered tokens: rank after rank, each its content tokens in the same order. Slices follow one another in
    order of ranks, unless `places` give each sequence an order of its own.

    Replicas are of class tokens, which are nobody's content, or of sinks: of the first content tokens those that lie
    before a rank's slice. Under causal attention sinks see nothing but sinks, so their replicas are exact, and no sink
    is a far token.
    """

    counts: np.ndarray  # (B, P) content tokens of each sequence on each rank
    rank: int
    n_class: int = 0  # tokens at the front of each sequence that are replicated: class tokens, registers
    causal: bool = False  # far tokens of later ranks are not seen
    replicas: int = 1  # ranks that hold the class tokens: 0 .. replicas - 1
    places: np.ndarray | None = None  # (B, P) which slice of each sequence each rank has; None: rank r has slice r
    quiet: bool = False  # one rank has all tokens, and tells nobody
    sinks: int = 0  # of a causal layout without class tokens: first content tokens that ranks replicate

    def __post_init__(self) -> None:
        if self.sinks and not (self.causal and not self.n_class):
            raise ValueError("only causal layouts without class tokens have sinks")

    def part(self, sequences: slice) -> Layout:
        """Of some of the sequences, which are cut as they are."""
        places = None if self.places is None else self.places[sequences]
        return replace(self, counts=self.counts[sequences], places=places)

    @cached_property
    def halves(self) -> tuple[tuple[slice, Layout], tuple[slice, Layout]]:
        """Of two sequences or more: cut between two of them, where tokens are halved best."""
        before, n = np.cumsum(self.lengths)[:-1], len(self.counts)
        middle = 1 + int(np.argmin(np.abs(2 * before - self.lengths.sum())))
        first, second = slice(0, middle), slice(middle, n)
        return (first, self.part(first)), (second, self.part(second))

    @property
    def size(self) -> int:
        return self.counts.shape[1]

    @property
    def forward(self) -> bool:
        """Whether a rank needs to hear the ranks before it only."""
        return self.causal and self.places is None

    @cached_property
    def order(self) -> np.ndarray:
        """(B, P) the ranks in order of the slices they have."""
        if self.places is None:
            return np.tile(np.arange(self.size), (len(self.counts), 1))
        return np.argsort(self.places, axis=1)

    @cached_property
    def earlier(self) -> np.ndarray:
        """(B, P) whether a rank's slice comes before this rank's."""
        places = np.argsort(self.order, axis=1)
        return places < places[:, self.rank, None]

    @cached_property
    def starts(self) -> np.ndarray:
        """(B, P) content tokens of each sequence before each rank's slice."""
        ordered = np.take_along_axis(self.counts, self.order, axis=1)
        starts = np.empty_like(self.counts)
        np.put_along_axis(starts, self.order, np.cumsum(ordered, axis=1) - ordered, axis=1)
        return starts

    @cached_property
    def sink_counts(self) -> np.ndarray:
        """(B, P) sinks among each rank's content tokens, the first of these: no other rank sees them by exchange."""
        counts: np.ndarray = np.clip(self.sinks - self.starts, 0, self.counts)
        return counts

    @cached_property
    def sent_counts(self) -> np.ndarray:
        """(P,) content tokens per rank over the whole batch, without sinks."""
        counts: np.ndarray = (self.counts - self.sink_counts).sum(axis=0)
        return counts

    @cached_property
    def lengths(self) -> np.ndarray:
        """(B,) content tokens per sequence."""
        return self.counts.sum(axis=1)

    @cached_property
    def token_counts(self) -> np.ndarray:
        """(P,) content tokens per rank over the whole batch."""
        return self.counts.sum(axis=0)

    @cached_property
    def own_class(self) -> int:
        """Class rows per sequence on this rank."""
        return self.n_class if self.rank < self.replicas else 0

    @cached_property
    def fronts(self) -> np.ndarray:
        """(B,) replicas of each sequence on this rank: its first rows. A rank without content has none of sinks."""
        sinks = np.minimum(self.starts[:, self.rank], self.sinks)
        return self.own_class + np.where(self.counts[:, self.rank] > 0, sinks, 0)

    @cached_property
    def row_offsets(self) -> np.ndarray:
        """(B + 1,) first row of each sequence on this rank."""
        return displs(self.counts[:, self.rank] + self.fronts)

    @cached_property
    def replica_rows(self) -> np.ndarray:
        """Rows of the replicas of sinks, in sequence order."""
        return ranges(self.row_offsets[:-1], self.fronts - self.own_class)

    @cached_property
    def class_rows(self) -> np.ndarray:
        """Rows of the class-token replicas, in sequence order."""
        return ranges(self.row_offsets[:-1], np.full(len(self.counts), self.own_class))

    @cached_property
    def _content_rows(self) -> np.ndarray | slice:
        if not self.fronts.any():
            return slice(None)
        if len(self.counts) == 1:
            return slice(int(self.fronts[0]), None)
        return ranges(self.row_offsets[:-1] + self.fronts, self.counts[:, self.rank])

    def content(self, x: np.ndarray) -> np.ndarray:
        """Rows (n, ...) -> content tokens only, a view where possible."""
        return take(x, self._content_rows)

    @cached_property
    def row_sequence(self) -> np.ndarray:
        """(n,) sequence of each row."""
        return np.repeat(np.arange(len(self.counts)), np.diff(self.row_offsets))

    @cached_property
    def row_token(self) -> np.ndarray:
        """(n,) index of each row in its whole sequence, class tokens included (the first ones)."""
        sequence = self.row_sequence
        within = np.arange(self.row_offsets[-1]) - self.row_offsets[sequence]
        front, before = self.fronts[sequence], self.starts[sequence, self.rank]
        return np.where(within < front, within, self.n_class + before + within - front)

    @cached_property
    def _gathered_starts(self) -> np.ndarray:
        """(B, P) where each rank's content tokens of each sequence begin in the gathered ones."""
        starts: np.ndarray = displs(self.token_counts)[:-1] + np.cumsum(self.counts, axis=0) - self.counts
        return starts

    def _gathered(self, seen: np.ndarray, skipped: np.ndarray | int = 0) -> np.ndarray:
        """Indices into the gathered tokens: sequence by sequence, the tokens of the ranks `seen` (B, P) in order, but
        for the first `skipped` (B, P) of each."""
        parts = self._gathered_starts + skipped, (self.counts - skipped) * seen
        return ranges(*(np.take_along_axis(part, self.order, axis=1).ravel() for part in parts))

    @cached_property
    def gathered_sinks(self) -> np.ndarray:
        """(N,) bool, which of the gathered tokens are sinks."""
        sinks = np.zeros(int(self.token_counts.sum()), bool)
        sinks[ranges(self._gathered_starts.ravel(), self.sink_counts.ravel())] = True
        return sinks

    @cached_property
    def last_rank(self) -> np.ndarray:
        """(B,) the rank that holds a sequence's last content token, -1 where it has none."""
        filled = np.take_along_axis(self.counts, self.order, axis=1)[:, ::-1] > 0
        ranks = np.take_along_axis(self.order[:, ::-1], filled.argmax(axis=1)[:, None], axis=1)[:, 0]
        return np.where(filled.any(axis=1), ranks, -1)

    @cached_property
    def last_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Sequences whose last content token is on this rank, and its row in each."""
        here = self.last_rank == self.rank
        return np.flatnonzero(here), self.row_offsets[1:][here] - 1

    @cached_property
    def _far_seen(self) -> np.ndarray:
        """(B, P) whose tokens this rank attends to through the exchange."""
        return self.earlier if self.causal else np.tile(np.arange(self.size) != self.rank, (len(self.counts), 1))

    @cached_property
    def far_ranks(self) -> np.ndarray:
        """Ranks whose tokens this rank attends to through the exchange, in any sequence."""
        if self.forward:
            return np.arange(self.rank)
        return np.flatnonzero(self._far_seen.any(axis=0))

    @cached_property
    def far_index(self) -> np.ndarray:
        """Where the far tokens lie in the gathered ones, sequence by sequence."""
        return self._gathered(self._far_seen, self.sink_counts)

    @cached_property
    def far_offsets(self) -> np.ndarray:
        """(B + 1,) first far token of each sequence in `far_index`."""
        return displs(((self.counts - self.sink_counts) * self._far_seen).sum(axis=1))

    def far_from(self, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`far_index` and `far_offsets` with nothing but the tokens of `ranks`."""
        seen = self._far_seen & np.isin(np.arange(self.size), ranks)
        return self._gathered(seen, self.sink_counts), displs(((self.counts - self.sink_counts) * seen).sum(axis=1))

    @cached_property
    def sequence_order(self) -> np.ndarray:
        """Gathered tokens -> sequence by sequence in order of position."""
        return self._gathered(np.ones_like(self.counts))

    @cached_property
    def packed_rows(self) -> np.ndarray:
        """(n,) where this rank's rows lie in the packed batch, whose sequences begin with their class tokens."""
        found: np.ndarray = displs(self.lengths + self.n_class)[self.row_sequence] + self.row_token
        return found

    @cached_property
    def packed_content(self) -> np.ndarray:
        """Where the gathered tokens lie in the packed batch."""
        places = np.empty_like(self.sequence_order)
        places[self.sequence_order] = ranges(displs(self.lengths + self.n_class)[:-1] + self.n_class, self.lengths)
        return places

    @cached_property
    def everything(self) -> Layout:
        """All tokens on one rank: its rows are those of the packed batch."""
        return Layout(self.lengths[:, None], 0, self.n_class, self.causal)

    @cached_property
    def everything_places(self) -> np.ndarray:
        """Where the gathered tokens lie among the content tokens of `everything`."""
        places = np.empty_like(self.sequence_order)
        places[self.sequence_order] = np.arange(len(places))
        return places

    @cached_property
    def far_places(self) -> np.ndarray:
        """Where the far tokens lie there, in the order of `far_index`."""
        found: np.ndarray = self.everything_places[self.far_index]
        return found

    def class_share(self, x: np.ndarray) -> np.ndarray:
        """Rows (n, D) -> (B, n_class D): this rank's class tokens, side by side, over the number of replicas.

        Summed over ranks, their means.
        """
        shape = len(self.counts), self.n_class * x.shape[1]
        if not self.own_class:
            return module_of(x).zeros(shape, x.dtype)
        return take(x, self.class_rows).reshape(shape) / x.dtype.type(self.replicas)

    def content_sums(self, x: np.ndarray) -> np.ndarray:
        """Rows (n, D) -> (B, D): sum of this rank's content tokens of each sequence."""
        dtype = np.result_type(x.dtype, np.float32)
        sums = module_of(x).zeros((len(self.counts), x.shape[1]), dtype)
        for s, (first, last) in enumerate(zip(self.row_offsets[:-1], self.row_offsets[1:], strict=True)):
            x[first + self.fronts[s] : last].sum(axis=0, dtype=dtype, out=sums[s])
        return sums
