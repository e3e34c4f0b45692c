"""Keys and values that decoding keeps, per block and sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Protocol

import numpy as np

from astra_mpi.config import ModelConfig
from astra_mpi.partition import Layout


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


class Cache:
    """What this rank keeps of some of a batch's sequences."""

    def __init__(
        self, config: ModelConfig, layout: Layout, sequences: np.ndarray, room: np.ndarray, keeps_far: bool
    ) -> None:
        """room (B,): new tokens of each sequence that are to be kept here. keeps_far: also what is seen of others."""
        self.config, self.layout, self.sequences, self.room = config, layout, sequences, room
        self.keeps_far = keeps_far
        self.own: list[dict[int, Rows]] = [{} for _ in range(config.n_layers)]
        self.far: list[dict[int, Kept]] = [{} for _ in range(config.n_layers)]

    def keep_own(self, i: int, kv: np.ndarray) -> None:
        """Of block i, this rank's rows kv (n, 2 d_kv), keys turned."""
        offsets = self.layout.row_offsets
        for s in self.sequences:
            mine = kv[offsets[s] : offsets[s + 1]]
            self.own[i][s] = Rows(self.config, len(mine) + int(self.room[s]))
            self.own[i][s].append(mine)

    def keep_far(self, i: int, offsets: np.ndarray, remember: Callable[[int, int], Kept]) -> None:
        """Of block i, what is far: `remember` keeps the keys from one index to another, a sequence's at `offsets`."""
        if self.keeps_far:
            for s in self.sequences:
                if offsets[s] < offsets[s + 1]:
                    self.far[i][s] = remember(int(offsets[s]), int(offsets[s + 1]))

    @property
    def n_bytes(self) -> int:
        """Of all that is kept, room for new tokens included; what blocks share counts once."""
        kept: list[Kept] = [x for of_block in self.own for x in of_block.values()]
        kept += [x for of_block in self.far for x in of_block.values()]
        return sum({id(array): array.nbytes for x in kept for array in x.arrays()}.values())
