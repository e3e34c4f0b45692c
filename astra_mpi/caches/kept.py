"""What is kept of a sequence in one block, as a new token reads it: by kernels, or by rows of a compiled table."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Protocol

import numpy as np

from astra_mpi.config import ModelConfig
from astra_mpi.kernels.aligned import address
from astra_mpi.kernels.cpu.token import tables as t
from astra_mpi.kernels.near import Near


class Softmax:
    """The running softmax of one new token's heads, in one row of (H (d + 2),) numbers that can travel."""

    def __init__(self, row: np.ndarray, config: ModelConfig) -> None:
        h_kv, repeat = config.n_kv_heads, config.n_heads // config.n_kv_heads
        self.row = row
        self.acc = row[: config.d_queries].reshape(h_kv, repeat, config.d_head)
        self.row_max, self.row_sum = row[config.d_queries :].reshape(2, h_kv, repeat)

    @staticmethod
    def width(config: ModelConfig) -> int:
        """Numbers in a row."""
        return config.d_queries + 2 * config.n_heads

    def clear(self) -> None:
        self.row[:] = 0
        self.row_max[:] = -np.inf


class Kept(Protocol):
    """Keys and values of one sequence in one block that a new token attends to."""

    def attend(
        self, q: np.ndarray, softmax: Softmax, kernels: ModuleType, first: int = 0, near: Near | None = None
    ) -> None:
        """Scaled queries q (Hkv, H / Hkv, d): one step of online softmax over all keys from the first one in the window
        on. What is far comes first. near: a cap of scores."""

    def arrays(self) -> Iterable[np.ndarray]:
        """All that is kept."""

    def segments(self) -> list[np.ndarray] | None:
        """Rows (N_SEGMENT,) int64 with which the compiled token reads it, valid until it grows beyond its room; None if
        it does not."""


def segment(kind: int, n: int, capacity: int, **arrays: np.ndarray | None) -> np.ndarray:
    """A row (N_SEGMENT,) of n keys and values of a kind; arrays by the names of their columns in `tables`."""
    row = np.zeros(t.N_SEGMENT, np.int64)
    row[t.KIND], row[t.COUNT], row[t.CAPACITY] = kind, n, capacity
    for name, array in arrays.items():
        row[getattr(t, name)] = address(array)
    return row
