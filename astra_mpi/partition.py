"""The cut: which tokens a rank owns. Integers only, no communication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from astra_mpi.config import require
from astra_mpi.device.xp import module_of, take

#: relative speeds of the ranks, "causal" (equal ones, see `finish_together`), or None for an even cut
Cut = Sequence[float] | str | None
#: who hears whom: all of all, all of those before them (True), or per rank the ranks that it hears
Hears = bool | tuple[tuple[int, ...], ...]


def hears(receiver: int, sender: int, forward: Hears) -> bool:
    """Whether a rank gets the message of another one."""
    if receiver == sender:
        return False
    return sender < receiver or not forward if isinstance(forward, bool) else sender in forward[receiver]


@dataclass(frozen=True)
class TokenCost:
    """What a token costs its rank under causal attention, in any one unit of time."""

    own: float  # all that does not depend on other tokens
    score: float  # attending to one token
    far: float = 0.0  # making the key and value of one token of another rank
    send: float = 0.0  # making a token's message, which the last rank does not
    sinks: int = 0  # first tokens, that ranks behind compute themselves and nobody sends


def even(n_tokens: int, size: int) -> np.ndarray:
    """Counts (size,) that differ by at most one, the larger first."""
    return n_tokens // size + (np.arange(size) < n_tokens % size).astype(np.int64)


def weighted(n_tokens: int, weights: Sequence[float]) -> np.ndarray:
    """Counts (size,) in proportion to `weights`: largest remainders, lowest rank first on a tie."""
    w = np.asarray(weights, dtype=np.float64)
    require(
        w.ndim == 1 and w.size > 0 and bool(np.isfinite(w).all() and (w >= 0).all()) and w.sum() > 0,
        f"weights {weights} must be numbers >= 0, not all 0",
    )
    share = n_tokens * (w / w.sum())
    counts = np.floor(share).astype(np.int64)
    order = np.argsort(counts - share, kind="stable")
    counts[order[: n_tokens - counts.sum()]] += 1
    return counts


def finish_together(n_tokens: int, speeds: Sequence[float], cost: TokenCost) -> np.ndarray:
    """Counts (size,) with which ranks of these relative speeds need equally long for a causal model.

    A rank with tokens a .. a + n - 1 needs (n own + n send + a far + score sum(i + 1 for these i)) / speed; the last
    rank sends nothing. Of its far tokens the sinks cost it `own` each, and of its own tokens they are not sent. The
    common time is found by bisection: what it lets the ranks own grows with it.
    """
    weighted(n_tokens, speeds)  # checks them
    token = cost.own + cost.send + cost.far + cost.score * n_tokens
    low, high = 0.0, (n_tokens * token + cost.sinks * cost.own) / max(speeds) + 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _ends(middle, speeds, cost)[-1] >= n_tokens else (middle, high)
    ends = np.rint(np.minimum(_ends(high, speeds, cost), n_tokens)).astype(np.int64)
    return np.diff(ends, prepend=0)


def _ends(time: float, speeds: Sequence[float], cost: TokenCost) -> np.ndarray:
    """Tokens (size,) that the ranks up to each one own together if each works for `time`."""
    ends = np.zeros(len(speeds) + 1)
    for rank, speed in enumerate(speeds):
        start, send = ends[rank], 0.0 if rank == len(speeds) - 1 else cost.send
        replicas = min(start, cost.sinks)
        unsent = cost.sinks - replicas
        budget = max(time * speed - (start - replicas) * cost.far - replicas * cost.own, 0.0)
        n_own = _affordable(budget, cost.own + cost.score * (start + 0.5), cost.score)
        if n_own > unsent:
            n_own = _affordable(budget + unsent * send, cost.own + send + cost.score * (start + 0.5), cost.score)
        ends[rank + 1] = start + n_own
    return ends[1:]


def _affordable(budget: float, linear: float, score: float) -> float:
    """n with n linear + n^2 score / 2 = budget; written so that a score of 0 is an ordinary case."""
    return float(2 * budget / (linear + np.sqrt(linear**2 + 2 * score * budget)))


def displs(counts: np.ndarray) -> np.ndarray:
    """Start of each part, and the end of the last: (n + 1,)."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The integers starts[i] .. starts[i] + counts[i] - 1, one range after another."""
    first = displs(counts)
    return np.arange(first[-1]) + np.repeat(starts - first[:-1], counts)


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
        """All content tokens on one rank, sequence by sequence in order of position."""
        return Layout(self.lengths[:, None], 0, self.n_class, self.causal, replicas=0)

    @cached_property
    def everything_places(self) -> np.ndarray:
        """Where the gathered tokens lie in `everything`."""
        places = np.empty_like(self.sequence_order)
        places[self.sequence_order] = np.arange(len(places))
        return places

    @cached_property
    def far_places(self) -> np.ndarray:
        """Where the far tokens lie in `everything`, in the order of `far_index`."""
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


def rotated(n_sequences: int, size: int) -> np.ndarray:
    """Places (B, size) that give the last slices of successive sequences to successive ranks, from the last one on."""
    return (np.arange(size) + np.arange(n_sequences)[:, None]) % size


def cut(lengths: np.ndarray, size: int, weights: Cut = None, cost: TokenCost | None = None) -> np.ndarray:
    """Counts (B, size): every sequence is cut by its own length, evenly or by `weights`.

    With the cost of a causal model's tokens, weights are speeds and ranks finish together; else counts are in
    proportion to them.
    """
    if isinstance(weights, str):
        require(weights == "causal" and cost is not None, f"weights '{weights}' does not fit here; give numbers")
        weights = [1.0] * size
    else:
        n = size if weights is None else len(weights)
        require(n == size, f"{n} weights for {size} ranks; give one each")
    distinct, which = np.unique(lengths, return_inverse=True)
    parts = [_cut_one(int(t), size, weights, cost) for t in distinct]
    return np.array(parts, dtype=np.int64).reshape(len(parts), size)[which]


def _cut_one(n_tokens: int, size: int, weights: Sequence[float] | None, cost: TokenCost | None) -> np.ndarray:
    if weights is None:
        return even(n_tokens, size)
    return weighted(n_tokens, weights) if cost is None else finish_together(n_tokens, weights, cost)
