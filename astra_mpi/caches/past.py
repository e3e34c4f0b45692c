"""What a rank keeps of one conversation, turn after turn: its own tokens in full, those of others as it sees them.

A conversation is chunks of consecutive tokens: a prompt cut over the ranks, or an answer on the rank that gave it. What
a rank has not been told yet of others' tokens is made up for at once, before the next prompt is cut
(docs/explanation/decode.md, Conversations). Of sinks, the first tokens of the first chunk, nobody is told: who needs
them has computed them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

from astra_mpi.caches.cache import HostCache, Part
from astra_mpi.caches.kept import Kept, Softmax
from astra_mpi.caches.rows import new_rows
from astra_mpi.config import ModelConfig
from astra_mpi.kernels.near import Near
from astra_mpi.layout import Layout

#: queries that attend to what is far at a time
TILE = 128


@dataclass(eq=False)
class Chunk:
    """Consecutive tokens from `first` on, rank after rank `counts` (P,) of them; those of a rank begin with its
    `sinks` (P,)."""

    first: int
    counts: np.ndarray
    sinks: np.ndarray
    replicas: int = 0  # of sinks, that this rank keeps before its tokens
    heard: bool = False  # all ranks have been told of all of them; else ranks behind, if it was `cut`, or nobody
    #: of this rank's tokens, per block, what others would see (n, width), or what that is made of
    raw: dict[int, list[np.ndarray]] = field(default_factory=dict)
    seen: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.first + int(self.counts.sum())

    @property
    def told_counts(self) -> np.ndarray:
        """(P,) tokens of which others are told."""
        return self.counts - self.sinks

    @property
    def cut(self) -> bool:
        """Whether more than one rank has some."""
        return int((self.counts > 0).sum()) > 1

    def unheard(self, rank: int, by: int) -> bool:
        """Whether `by` does not know of the tokens of `rank`."""
        return not self.heard and rank != by and self.told_counts[rank] > 0 and not (self.cut and rank < by)

    def untold(self, rank: int) -> bool:
        """Whether some rank does not know of the tokens of `rank`."""
        return any(self.unheard(rank, by) for by in range(len(self.counts)))


class Several:
    """What is kept of other ranks' tokens in one block, chunk by chunk."""

    def __init__(self) -> None:
        self.kept: list[tuple[Chunk, Kept]] = []

    def attend(
        self, q: np.ndarray, softmax: Softmax, kernels: ModuleType, first: int = 0, near: Near | None = None
    ) -> None:
        """Queries (Hkv, n, d). What is kept as codes begins a softmax, so that each has one of its own. There is no
        window, so all are read from the first on."""
        for _, kept in self.kept:
            part = Sums(np.zeros_like(softmax.acc))
            kept.attend(q, part, kernels, first, near)
            merge(softmax, part)

    def arrays(self) -> Iterable[np.ndarray]:
        return [array for _, kept in self.kept for array in kept.arrays()]

    def segments(self) -> list[np.ndarray] | None:
        every = [kept.segments() for _, kept in self.kept]
        return None if None in every else [one for several in every for one in several or []]


class Sums(Softmax):
    """A running softmax of queries (Hkv, n, d) in arrays of its own."""

    def __init__(self, acc: np.ndarray, row_max: np.ndarray | None = None, row_sum: np.ndarray | None = None) -> None:
        """acc (Hkv, n, d); row_max and row_sum (Hkv, n)."""
        self.acc = acc
        self.row_max = np.full(acc.shape[:2], -np.inf, np.float32) if row_max is None else row_max
        self.row_sum = np.zeros(acc.shape[:2], np.float32) if row_sum is None else row_sum


def merge(into: Softmax, part: Softmax) -> None:
    """The softmax over the keys of both, in `into`; `part` has seen one at least."""
    highest = np.maximum(into.row_max, part.row_max)
    for one, first in ((into, True), (part, False)):
        share = np.exp(one.row_max - highest)
        sums, total = one.acc * share[:, :, None], one.row_sum * share
        if first:
            into.acc[...], into.row_sum[...] = sums, total
        else:
            into.acc += sums
            into.row_sum += total
    into.row_max[...] = highest


class Past(HostCache):
    """The cache of a conversation, of one sequence. Between turns `open` says what the next one adds."""

    def __init__(self, kernels: ModuleType, config: ModelConfig, notes: bool = True) -> None:
        """notes: keep what others may have to be told."""
        nothing, zeros = Layout(np.zeros((1, 1), np.int64), 0), np.zeros(1, np.int64)
        super().__init__(kernels, config, nothing, zeros, np.zeros(1), True, zeros)
        self.own = [{0: new_rows(config, 0, kernels)} for _ in range(config.n_layers)]
        self.several = [Several() for _ in range(config.n_layers)]
        self.chunks: list[Chunk] = []
        self.notes = notes
        self.n_sinks = 0  # of a conversation that is long enough
        self.known_sinks = 0  # that this rank keeps

    @property
    def n_tokens(self) -> int:
        """Of the conversation, that ranks keep together."""
        return self.chunks[-1].end if self.chunks else 0

    @property
    def n_own(self) -> int:
        return self.own[0][0].n

    def open(self, layout: Layout, room: int) -> None:
        """The next forward pass adds the tokens of `layout`, and this rank `room` after them."""
        self.layout = layout
        wanted = self.n_own + int(layout.row_offsets[-1]) + room
        for rows in (of_block[0] for of_block in self.own):
            rows.make_room(wanted)
        begins, counts = not self.chunks, layout.counts[0].copy()
        sinks = np.clip(self.n_sinks * begins - layout.starts[0], 0, counts)
        self.chunks.append(Chunk(self.n_tokens, counts, sinks, int(layout.fronts[0])))
        if begins:
            self.known_sinks = self.chunks[0].replicas + int(sinks[layout.rank])

    def answer(self, rank: int) -> None:
        """What is noted from now on follows what `open` announced, on `rank`."""
        nothing = np.zeros_like(self.chunks[-1].counts)
        self.chunks.append(Chunk(self.n_tokens, nothing, nothing.copy()))
        self._answers = rank

    def missing_sinks(self) -> range:
        """Sinks of the conversation that this rank does not keep."""
        return range(self.known_sinks, int(self.chunks[0].sinks.sum()) if self.chunks else 0)

    def close(self, n_new: int) -> None:
        """The answer has this number of tokens; what was computed beyond them is dropped."""
        chunk = self.chunks[-1]
        chunk.counts[self._answers] = n_new
        for i, parts in chunk.raw.items():
            chunk.raw[i] = [np.concatenate(parts)[:n_new]]
        n_own = self._counted_own()
        for of_block in self.own:
            of_block[0].n = n_own
        if not n_new:
            self.chunks.pop()

    def _counted_own(self) -> int:
        """Rows of all chunks on this rank."""
        return sum(int(chunk.counts[self.layout.rank]) + chunk.replicas for chunk in self.chunks)

    def truncate(self, n_tokens: int) -> None:
        """Keep at most so many tokens of the beginning: whole chunks, or a part of one that only one rank knows."""
        while self.chunks and self.n_tokens > n_tokens:
            chunk = self.chunks[-1]
            n_kept = 0 if chunk.cut or chunk.heard else max(n_tokens - chunk.first, 0)
            if n_kept:
                chunk.counts[chunk.counts > 0] = n_kept
                chunk.sinks = np.minimum(chunk.sinks, chunk.counts)
                n_told = int(chunk.told_counts.sum())
                chunk.raw = {i: [np.concatenate(parts)[:n_told]] for i, parts in chunk.raw.items()}
                chunk.seen = {i: seen[:n_told] for i, seen in chunk.seen.items()}
            else:
                self.chunks.pop()
                for several in self.several:
                    several.kept = [pair for pair in several.kept if pair[0] is not chunk]
        n_own = self._counted_own()
        for i, of_block in enumerate(self.own):
            of_block[0].n = n_own
            self._know(i)

    def keep_own(self, i: int, kv: np.ndarray, places: np.ndarray | None) -> None:
        self.own[i][0].append(kv)

    def keep_far(
        self,
        i: int,
        offsets: np.ndarray,
        remember: Callable[[Part, np.ndarray], Kept],
        places: np.ndarray | None,
    ) -> None:
        n = int(offsets[-1])
        if n:
            self.add(i, self.chunks[-1], remember(slice(0, n), np.array([0, n])))

    def add(self, i: int, chunk: Chunk, kept: Kept) -> None:
        """What this rank sees in block i of others' tokens of `chunk`."""
        self.several[i].kept.append((chunk, kept))
        self._know(i)

    def _know(self, i: int) -> None:
        self.far[i] = {0: self.several[i]} if self.several[i].kept else {}

    def note(self, i: int, payload: np.ndarray) -> None:
        """What others would see of this rank's next tokens in block i is made of payload (n, width)."""
        chunk = self.chunks[-1]
        payload = payload[int(chunk.sinks[self.layout.rank]) :]  # a chunk with sinks is a prompt, noted at once
        if self.notes and len(chunk.counts) > 1 and len(payload):
            chunk.raw.setdefault(i, []).append(payload.astype(np.float32))

    def note_seen(self, i: int, seen: np.ndarray) -> None:
        """It is this (n, width), and some ranks have been told."""
        if self.notes and len(seen):
            self.chunks[-1].raw.pop(i, None)
            self.chunks[-1].seen[i] = seen.copy()

    def attend_past(self, i: int, q: np.ndarray, acc: np.ndarray, row_max: np.ndarray, row_sum: np.ndarray) -> None:
        far = [pair for pair in self.several[i].kept if pair[0] is not self.chunks[-1]]
        (h, n, d), rows = q.shape, self.own[i][0]
        if not n or not (far or rows.n):
            return
        old = Several()
        old.kept = [*far, *([(self.chunks[0], rows)] if rows.n else [])]
        groups = self.config.n_kv_heads, h // self.config.n_kv_heads  # query heads that share a key head are as one
        state = [x.reshape(*groups, *x.shape[1:]) for x in (acc, row_max, row_sum)]
        queries = q.reshape(*groups, n, d)
        for a in range(0, n, TILE):
            views = [x[:, :, a : a + TILE] for x in state]
            flat = [np.ascontiguousarray(view).reshape(groups[0], -1, *view.shape[3:]) for view in views]
            tile = np.ascontiguousarray(queries[:, :, a : a + TILE], np.float32).reshape(groups[0], -1, d)
            old.attend(tile, Sums(*flat), self.kernels, 0, self.near)
            for view, values in zip(views, flat, strict=True):
                view[...] = values.reshape(view.shape)

    def drop(self, sequence: int, n: int) -> None:
        super().drop(sequence, n)
        for parts in self.chunks[-1].raw.values() if n else ():
            parts[-1] = parts[-1][:-n]  # of the last pass

    def arrays(self) -> Iterable[np.ndarray]:
        noted = [a for chunk in self.chunks for parts in chunk.raw.values() for a in parts]
        noted += [a for chunk in self.chunks for a in chunk.seen.values()]
        return [*super().arrays(), *noted]

    def tell(self, i: int, chunk: Chunk, as_seen: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
        """What others see of this rank's tokens of `chunk` in block i, (n, width)."""
        if i in chunk.raw:
            chunk.seen[i] = as_seen(i, np.concatenate(chunk.raw.pop(i)))
        return chunk.seen[i]

    def told(self) -> None:
        """All ranks know all chunks."""
        for chunk in self.chunks:
            chunk.heard = True
            chunk.raw, chunk.seen = {}, {}
