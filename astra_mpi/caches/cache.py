"""Keys and values that decoding keeps, per block and sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from astra_mpi.config import ModelConfig
from astra_mpi.partition import Layout

#: some of the far keys, by their indices
Part = slice | np.ndarray


class Softmax:
    """The running softmax of one new token's heads, in one row of (H (d + 2),) numbers that can travel."""

    def __init__(self, row: np.ndarray, config: ModelConfig) -> None:
        h_kv, repeat = config.n_kv_heads, config.n_heads // config.n_kv_heads
        self.row = row
        self.acc = row[: config.d_model].reshape(h_kv, repeat, config.d_head)
        self.row_max, self.row_sum = row[config.d_model :].reshape(2, h_kv, repeat)

    @staticmethod
    def width(config: ModelConfig) -> int:
        """Numbers in a row."""
        return config.d_model + 2 * config.n_heads

    def clear(self) -> None:
        self.row[:] = 0
        self.row_max[:] = -np.inf


class Kept(Protocol):
    """Keys and values of one sequence in one block that a new token attends to."""

    def attend(self, q: np.ndarray, softmax: Softmax, kernels: ModuleType) -> None:
        """Scaled queries q (Hkv, H / Hkv, d): one step of online softmax. What is far comes first."""

    def arrays(self) -> Iterable[np.ndarray]:
        """All that is kept."""


class Rows:
    """Keys and values as they are, (Hkv, capacity, d) each, so that a head's are read in one stretch."""

    def __init__(self, config: ModelConfig, capacity: int) -> None:
        self.keys, self.values = np.empty((2, config.n_kv_heads, capacity, config.d_head), np.float32)
        self.bias: np.ndarray | None = None  # (n,) added to the scores
        self.n = 0

    @classmethod
    def of(cls, config: ModelConfig, kv: np.ndarray, bias: np.ndarray | None) -> Rows:
        """Nothing but the rows kv (m, 2 d_kv), which do not grow."""
        rows = cls(config, len(kv))
        rows.append(kv)
        rows.bias = None if bias is None else bias.copy()
        return rows

    def append(self, kv: np.ndarray) -> None:
        """[K | V] (m, 2 d_kv), keys turned."""
        h_kv, _, d = self.keys.shape
        new = slice(self.n, self.n + len(kv))
        heads = kv.reshape(len(kv), 2, h_kv, d).transpose(1, 2, 0, 3)  # (2, Hkv, m, d)
        self.keys[:, new], self.values[:, new] = heads
        self.n = new.stop

    def attend(self, q: np.ndarray, softmax: Softmax, kernels: ModuleType) -> None:
        kept = slice(0, self.n)
        sums = softmax.acc, softmax.row_max, softmax.row_sum
        # query heads that share a key head are as queries of one head
        kernels.attend(q, self.keys[:, kept], self.values[:, kept], self.bias, None, *sums)

    def arrays(self) -> Iterable[np.ndarray]:
        return [self.keys, self.values] + ([] if self.bias is None else [self.bias])


class Cache(ABC):
    """What this rank keeps of some of a batch's sequences, and what a new token makes of it."""

    def __init__(
        self, config: ModelConfig, layout: Layout, sequences: np.ndarray, room: np.ndarray, keeps_far: bool
    ) -> None:
        """room (B,): new tokens of each sequence that are to be kept here. keeps_far: also what is seen of others."""
        self.config, self.layout, self.sequences, self.room = config, layout, sequences, room
        self.keeps_far = keeps_far

    @abstractmethod
    def keep_own(self, i: int, kv: np.ndarray) -> None:
        """Of block i, this rank's rows kv (n, 2 d_kv), keys turned."""

    @abstractmethod
    def keep_far(self, i: int, offsets: np.ndarray, remember: Callable[[Part, np.ndarray], Any]) -> None:
        """Of block i, what is far, a sequence's keys at `offsets`. `remember` makes what is kept of some of them, of
        which it is told where each sequence's begin."""

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
    def plan(self, sequences: np.ndarray, keeps: bool) -> None:
        """Before the blocks of a step: `sequences` (n,) get a token; keeps: its keys and values stay here."""

    @abstractmethod
    def attend(self, i: int, q: np.ndarray, kv: np.ndarray, rows: np.ndarray) -> None:
        """Scaled queries q (n, D) and new [K | V] (n, 2 d_kv) of block i -> rows (n, H (d + 2)) as of `Softmax`."""

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

    def keep_own(self, i: int, kv: np.ndarray) -> None:
        offsets = self.layout.row_offsets
        for s in self.sequences:
            mine = kv[offsets[s] : offsets[s + 1]]
            self.own[i][s] = Rows(self.config, len(mine) + int(self.room[s]))
            self.own[i][s].append(mine)

    def keep_far(self, i: int, offsets: np.ndarray, remember: Callable[[Part, np.ndarray], Kept]) -> None:
        if self.keeps_far:
            for s in self.sequences:
                if offsets[s] < offsets[s + 1]:
                    part = slice(int(offsets[s]), int(offsets[s + 1]))
                    self.far[i][s] = remember(part, np.array([0, part.stop - part.start]))

    def plan(self, sequences: np.ndarray, keeps: bool) -> None:
        self._planned, self._keeps = sequences.tolist(), keeps

    def attend(self, i: int, q: np.ndarray, kv: np.ndarray, rows: np.ndarray) -> None:
        heads = q.reshape(len(q), self.config.n_kv_heads, -1, self.config.d_head)  # (n, Hkv, H / Hkv, d)
        for s, row, queries, new in zip(self._planned, rows, heads, kv, strict=True):
            softmax = Softmax(row, self.config)
            softmax.clear()
            if s in self.far[i]:
                self.far[i][s].attend(queries, softmax, self.kernels)
            if self._keeps:
                self.own[i][s].append(new[None])
            self.own[i][s].attend(queries, softmax, self.kernels)

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
