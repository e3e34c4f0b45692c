"""Keys and values as they are: float32, or as narrow as products are computed."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

import numpy as np

from astra_mpi.caches.kept import Softmax, segment
from astra_mpi.config import ModelConfig
from astra_mpi.kernels.aligned import address, aligned
from astra_mpi.kernels.cpu import token
from astra_mpi.kernels.cpu.token import tables as t
from astra_mpi.kernels.near import Near

#: tokens of a strip of packed keys
STRIP = 16


class Rows:
    """Keys and values as they are, (Hkv, capacity, d) each, so that a head's are read in one stretch."""

    def __init__(self, config: ModelConfig, capacity: int) -> None:
        self.heads = config.n_kv_heads, config.d_head
        self._take(capacity)
        self.bias: np.ndarray | None = None  # (n,) added to the scores
        self.n = 0

    def _take(self, capacity: int) -> None:
        self.capacity = capacity
        self.keys, self.values = np.empty((2, self.heads[0], capacity, self.heads[1]), np.float32)

    def make_room(self, capacity: int) -> None:
        """Room for so many tokens; it grows by half at least, so that turns of a conversation do not copy it each
        time."""
        if self.capacity < capacity:
            keys, values = self.keys[:, : self.n], self.values[:, : self.n]
            self._take(max(capacity, self.capacity * 3 // 2))
            self.keys[:, : self.n], self.values[:, : self.n] = keys, values

    def append(self, kv: np.ndarray) -> None:
        """[K | V] (m, 2 d_kv), keys turned."""
        h_kv, _, d = self.keys.shape
        new = slice(self.n, self.n + len(kv))
        heads = kv.reshape(len(kv), 2, h_kv, d).transpose(1, 2, 0, 3)  # (2, Hkv, m, d)
        self.keys[:, new], self.values[:, new] = heads
        self.n = new.stop

    def attend(
        self, q: np.ndarray, softmax: Softmax, kernels: ModuleType, first: int = 0, near: Near | None = None
    ) -> None:
        kept = slice(first, self.n)
        sums = softmax.acc, softmax.row_max, softmax.row_sum
        # query heads that share a key head are as queries of one head
        bias = None if self.bias is None else self.bias[first:]
        kernels.attend(q, self.keys[:, kept], self.values[:, kept], bias, None, *sums, near)

    def arrays(self) -> Iterable[np.ndarray]:
        return [self.keys, self.values] + ([] if self.bias is None else [self.bias])

    def segments(self) -> list[np.ndarray] | None:
        return [segment(t.ROWS, self.n, self.capacity, KEYS=self.keys, VALUES=self.values, BIAS=self.bias)]


class NarrowRows(Rows):
    """The same in bfloat16, or in int8 with a factor of every token and head. Keys lie as packed weights do, in strips
    of 16 tokens (Hkv, capacity / 16, words, 16), values by rows."""

    kind: int
    word: int  # numbers in a word of keys
    number: type

    def _take(self, capacity: int) -> None:
        h_kv, d = self.heads
        self.capacity = -(-capacity // STRIP) * STRIP
        n_words = -(-d // self.word)
        self.keys = aligned((h_kv, self.capacity // STRIP, n_words, STRIP, self.word), self.number)
        self.values = aligned((h_kv, self.capacity, d), self.number)

    def make_room(self, capacity: int) -> None:
        if self.capacity < capacity:
            old = self.arrays()
            self._take(max(capacity, self.capacity * 3 // 2))
            for before, after in zip(old, self.arrays(), strict=True):
                after[:, : before.shape[1]] = before

    def append(self, kv: np.ndarray) -> None:
        room = np.empty(self.heads[1] + 4, np.int8)
        own = self.segments()[0]
        ld = kv.strides[0]
        token.keep(own, self.n, address(kv), ld, len(kv), *self.heads, address(room))
        self.n += len(kv)

    def attend(
        self, q: np.ndarray, softmax: Softmax, kernels: ModuleType, first: int = 0, near: Near | None = None
    ) -> None:
        kept = slice(first, self.n)
        sums = softmax.acc, softmax.row_max, softmax.row_sum
        bias = None if self.bias is None else self.bias[first:]
        keys, values = self.wide()
        kernels.attend(q, keys[:, kept], values[:, kept], bias, None, *sums, near)

    def wide(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values (Hkv, capacity, d) in float32."""
        h_kv, d = self.heads
        keys = self.keys.transpose(0, 1, 3, 2, 4).reshape(h_kv, self.capacity, -1)[:, :, :d]
        return self._widened(keys, self.values)

    def _widened(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored numbers (Hkv, capacity, d) -> float32."""
        raise NotImplementedError

    def arrays(self) -> list[np.ndarray]:
        return [self.keys, self.values] + ([] if self.bias is None else [self.bias])

    def segments(self) -> list[np.ndarray]:
        return [segment(self.kind, self.n, self.capacity, KEYS=self.keys, VALUES=self.values, BIAS=self.bias)]


class BFloat16Rows(NarrowRows):
    kind, word, number = t.BFLOAT16_ROWS, 2, np.uint16

    def _widened(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wide = [(numbers.astype(np.uint32) << 16).view(np.float32) for numbers in (keys, values)]
        return wide[0], wide[1]


class Int8Rows(NarrowRows):
    kind, word, number = t.INT8_ROWS, 4, np.uint8

    def _take(self, capacity: int) -> None:
        super()._take(capacity)
        self.key_scales, self.value_scales = (aligned((self.heads[0], self.capacity)) for _ in range(2))

    def _widened(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wide = (keys.astype(np.float32) - 128) * self.key_scales[:, :, None]
        return wide, values.view(np.int8).astype(np.float32) * self.value_scales[:, :, None]

    def arrays(self) -> list[np.ndarray]:
        return [self.key_scales, self.value_scales, *super().arrays()]

    def segments(self) -> list[np.ndarray]:
        own = super().segments()
        own[0][t.KEY_SCALES], own[0][t.VALUE_SCALES] = address(self.key_scales), address(self.value_scales)
        return own


def new_rows(config: ModelConfig, capacity: int, kernels: ModuleType) -> Rows:
    """Room for keys and values in the type in which `kernels` compute products, where this CPU multiplies it."""
    compute = getattr(kernels, "compute", "float32")
    if compute == "bfloat16" and token.HAS_BFLOAT16:
        return BFloat16Rows(config, capacity)
    if compute == "int8" and token.HAS_INT8:
        return Int8Rows(config, capacity)
    return Rows(config, capacity)


def rows_of(config: ModelConfig, kv: np.ndarray, bias: np.ndarray | None, kernels: ModuleType) -> Rows:
    """Nothing but the rows kv (m, 2 d_kv), which do not grow; bias (m,) of scores."""
    rows = new_rows(config, len(kv), kernels)
    rows.append(kv)
    rows.bias = None if bias is None else bias.copy()
    return rows
