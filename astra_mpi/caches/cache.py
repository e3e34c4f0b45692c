"""Keys and values that decoding keeps, per block and sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.caches.kept import Kept, Softmax
from astra_mpi.caches.new import NewTokens
from astra_mpi.caches.rows import Rows, new_rows
from astra_mpi.config import ModelConfig
from astra_mpi.kernels.near import Near
from astra_mpi.layout import Layout

#: some of the far keys, by their indices
Part = slice | np.ndarray


class Cache(ABC):
    """What this rank keeps of some of a batch's sequences, and what a new token makes of it."""

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout,
        sequences: np.ndarray,
        room: np.ndarray,
        keeps_far: bool,
        first: np.ndarray,
    ) -> None:
        """room (B,): new tokens of each sequence that are to be kept here. keeps_far: also what is seen of others.

        first (B,): positions of the first new tokens.
        """
        self.config, self.layout, self.sequences, self.room = config, layout, sequences, room
        self.keeps_far, self.first = keeps_far, first
        self.near = Near(config.score_cap) if config.score_cap else None

    @property
    def own_spans(self) -> tuple[np.ndarray, np.ndarray]:
        """(B,) of each sequence's rows the first that is kept, and where they end. Replicas are not kept where ranks
        merge what they see: each key counts once."""
        offsets = self.layout.row_offsets
        return offsets[:-1] + (0 if self.keeps_far else self.layout.fronts), offsets[1:]

    @abstractmethod
    def keep_own(self, i: int, kv: np.ndarray, places: np.ndarray | None) -> None:
        """Of block i, this rank's rows kv (n, 2 d_kv), keys turned; places (n,): positions, if it has a window."""

    @abstractmethod
    def keep_far(
        self,
        i: int,
        offsets: np.ndarray,
        remember: Callable[[Part, np.ndarray], Any],
        places: np.ndarray | None,
    ) -> None:
        """Of block i, what is far, a sequence's keys at `offsets`. `remember` makes what is kept of some of them, of
        which it is told where each sequence's begin. places (m,): positions of the keys, if the block has a window."""

    def attend_past(  # noqa: B027 - others keep no past
        self, i: int, q: np.ndarray, acc: np.ndarray, row_max: np.ndarray, row_sum: np.ndarray
    ) -> None:
        """Of block i, this rank's scaled queries q (H, n, d) attend to what was kept before this pass, as the kernel
        `attend` does: acc (H, n, d), row_max and row_sum (H, n), in place. Of one sequence."""

    def note(self, i: int, payload: np.ndarray) -> None:  # noqa: B027
        """What others would see of this rank's tokens in block i is made of payload (n, width)."""

    def note_seen(self, i: int, seen: np.ndarray) -> None:  # noqa: B027
        """It is this (n, width), and ranks behind have been told."""

    @abstractmethod
    def plan(self, new: NewTokens) -> None:
        """Before the blocks of a pass: what it computes."""

    @abstractmethod
    def attend(self, i: int, q: np.ndarray, kv: np.ndarray, rows: np.ndarray) -> None:
        """Scaled queries q (n, D) and new [K | V] (n, 2 d_kv) of block i -> rows (n, H (d + 2)) as of `Softmax`.
        A token sees those of its sequence that are planned before it."""

    @abstractmethod
    def drop(self, sequence: int, n: int) -> None:
        """The last n tokens that are kept of a sequence are none of it."""

    @abstractmethod
    def merge(self, parts: Sequence[np.ndarray], rows: np.ndarray) -> None:
        """Rows of every rank, (n, H (d + 2)) each -> those of all keys, but for the maxima."""

    @abstractmethod
    def finish(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Rows (n, H (d + 2)) -> what attention gives, out (n, D)."""

    @abstractmethod
    def arrays(self) -> Iterable[Any]:
        """All that is kept."""

    @property
    def n_bytes(self) -> int:
        """Of all that is kept, room for new tokens included; what blocks share counts once."""
        return sum({id(array): array.nbytes for array in self.arrays()}.values())


class HostCache(Cache):
    """Sequence by sequence, as a core goes over them."""

    def __init__(self, kernels: ModuleType, *kept: Any) -> None:
        super().__init__(*kept)
        self.kernels = kernels
        self.own: list[dict[int, Rows]] = [{} for _ in range(self.config.n_layers)]
        self.far: list[dict[int, Kept]] = [{} for _ in range(self.config.n_layers)]
        #: positions of the same keys, of blocks with a window
        self.own_places: list[dict[int, list[int]]] = [{} for _ in range(self.config.n_layers)]
        self.far_places: list[dict[int, list[int]]] = [{} for _ in range(self.config.n_layers)]

    def keep_own(self, i: int, kv: np.ndarray, places: np.ndarray | None) -> None:
        first, end = self.own_spans
        for s in self.sequences:
            part = self._seen(i, s, slice(int(first[s]), int(end[s])), places)
            mine = kv[part]
            self.own[i][s] = new_rows(self.config, len(mine) + int(self.room[s]), self.kernels)
            self.own[i][s].append(mine)
            if places is not None:
                self.own_places[i][s] = places[part].tolist()

    def keep_far(
        self,
        i: int,
        offsets: np.ndarray,
        remember: Callable[[Part, np.ndarray], Kept],
        places: np.ndarray | None,
    ) -> None:
        if self.keeps_far:
            for s in self.sequences:
                part = self._seen(i, s, slice(int(offsets[s]), int(offsets[s + 1])), places)
                if part.start < part.stop:
                    self.far[i][s] = remember(part, np.array([0, part.stop - part.start]))
                    if places is not None:
                        self.far_places[i][s] = places[part].tolist()

    def _seen(self, i: int, s: int, part: slice, places: np.ndarray | None) -> slice:
        """Of a sequence's keys those that its first new token sees, or a later one."""
        if places is None:
            return part
        hidden = int(self.first[s]) - self.config.window(i)
        return slice(part.start + int(np.searchsorted(places[part], hidden, "right")), part.stop)

    def plan(self, new: NewTokens) -> None:
        self._planned = list(zip(new.sequences.tolist(), new.positions.tolist(), new.keeps.tolist(), strict=True))

    def grow(self) -> None:
        """Own keys and values of the planned tokens have been written behind the others by the compiled token."""
        for i, (own, places) in enumerate(zip(self.own, self.own_places, strict=True)):
            for s, place, keeps in self._planned:
                own[s].n += keeps
                if keeps and self.config.window(i):
                    places[s].append(place)

    def drop(self, sequence: int, n: int) -> None:
        for own, places in zip(self.own, self.own_places, strict=True):
            own[sequence].n -= n
            if sequence in places:
                del places[sequence][len(places[sequence]) - n :]

    def attend(self, i: int, q: np.ndarray, kv: np.ndarray, rows: np.ndarray) -> None:
        heads = q.reshape(len(q), self.config.n_kv_heads, -1, self.config.d_head)  # (n, Hkv, H / Hkv, d)
        window = self.config.window(i)
        for (s, place, keeps), row, queries, new in zip(self._planned, rows, heads, kv, strict=True):
            softmax, hidden = Softmax(row, self.config), place - window
            softmax.clear()
            if s in self.far[i]:
                first = bisect_right(self.far_places[i][s], hidden) if window else 0
                self.far[i][s].attend(queries, softmax, self.kernels, first, self.near)
            if keeps:
                self.own[i][s].append(new[None])
                if window:
                    self.own_places[i][s].append(place)
            first = bisect_right(self.own_places[i][s], hidden) if window else 0
            self.own[i][s].attend(queries, softmax, self.kernels, first, self.near)

    def merge(self, parts: Sequence[np.ndarray], rows: np.ndarray) -> None:
        every = np.stack(parts)  # (P, n, H (d + 2))
        (size, n, _), h, d = every.shape, self.config.n_heads, self.config.d_head
        maxima = every[:, :, h * d : h * d + h]  # (P, n, H)
        shares = np.exp(maxima - maxima.max(axis=0))  # 0 for a rank without keys: the new token's are somewhere
        every[:, :, : h * d].reshape(size, n, h, d)[...] *= shares[:, :, :, None]
        every[:, :, h * d + h :] *= shares
        every.sum(axis=0, out=rows)

    def finish(self, rows: np.ndarray, out: np.ndarray) -> None:
        n, h, d = len(rows), self.config.n_heads, self.config.d_head
        sums, row_sum = rows[:, : h * d].reshape(n, h, d), rows[:, h * d + h :]
        np.divide(sums, row_sum[:, :, None], out=out.reshape(n, h, d))

    def arrays(self) -> Iterable[np.ndarray]:
        kept: list[Kept] = [x for of_block in self.own for x in of_block.values()]
        kept += [x for of_block in self.far for x in of_block.values()]
        return [array for x in kept for array in x.arrays()]
