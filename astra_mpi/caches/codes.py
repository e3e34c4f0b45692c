"""Far tokens kept as their codes, a few bytes each (arXiv 2505.19342; docs/explanation/decode.md has the equations)."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

import numpy as np

from astra_mpi.caches.kept import Softmax, segment
from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.tables import FarSum, FarTable, distinct
from astra_mpi.kernels.cpu.token import tables as t
from astra_mpi.kernels.near import Near
from astra_mpi.models.block import Block

#: far tokens whose keys and values exist at a time, where they are rebuilt for every new token
TILE = 512


class CodeSpace:
    """One block's attention to far tokens without their keys and values, where keys carry no position and vectors are
    sums of entries.

    A score is q . K^ = scale * sum_c parts[c, code_c] + offset, with parts = entries . (W_K q) for all entries once per
    head; the values are the entries weighted by what each code has gathered, projected once. Stages that have projected
    tables are scored and summed up in these.
    """

    def __init__(self, block: Block, codec: BlockCodec, site: str, far: FarTable) -> None:
        self.site = site
        self.key_book, self.value_book = codec.codebooks[0], codec.codebooks[-1]
        self.gain: np.ndarray | None = None  # (D,)
        self.eps: float | None = None  # where far tokens are divided by their sigma
        self.centred = False
        if site == "hidden" and block.normalises_input:
            self.gain, self.eps, self.centred = block.w["norm1.weight"], block.config.norm_eps, not block.recipe.rms
        #: (C, K, 2 d_kv); not of groups, whose tables are G times as large as their entries
        self.tables: np.ndarray | None = None
        self.bias = np.zeros(2 * block.config.d_kv, np.float32)
        if isinstance(far, FarSum) and self.key_book.entries.shape[2] == self.key_book.width:
            self.tables, self.bias = far.tables, far.bias
            return
        if site != "kv":
            self.w_kv = np.asarray(block.stored_kv, np.float32)  # (D, 2 d_kv); of narrow weights a copy
            shift = None if self.gain is None else block.w.get("norm1.bias")
            self.bias = block.b_kv if shift is None else block.b_kv + shift @ self.w_kv
        self.key_entries = self._entries(self.key_book)
        self.value_entries = self.key_entries if len(codec.codebooks) == 1 else self._entries(self.value_book)

    def _entries(self, book: Codebook) -> np.ndarray:
        """(C, K, W). What all numbers of all entries have in common vanishes in the centring, but not its rounding."""
        return book.entries - book.entries.mean(dtype=np.float64).astype(np.float32) if self.centred else book.entries

    def scale(self, codes: np.ndarray, kernels: ModuleType) -> np.ndarray | None:
        """Codes (m, C) -> 1 / sigma (m,) of the far tokens; None where nothing is divided."""
        if self.eps is None:
            return None
        scale = np.empty(len(codes), np.float32)
        for a in range(0, len(codes), TILE):
            x = self.key_book.decode(codes[a : a + TILE], kernels)  # (tile, D)
            x -= x.mean(axis=1, keepdims=True) if self.centred else 0
            scale[a : a + TILE] = 1 / np.sqrt(np.einsum("nd,nd->n", x, x) / x.shape[1] + self.eps)
        return scale

    def parts(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scaled queries (Hkv, r, d) -> (C, K, H) and offset (H,)."""
        h_kv, repeat, d = q.shape
        d_kv = h_kv * d
        offset = (q @ self.bias[:d_kv].reshape(h_kv, d, 1)).ravel()
        if self.tables is not None:
            scores = self._heads(self.tables, h_kv)[0] @ q.swapaxes(1, 2)  # (Hkv, C K, d) (Hkv, d, r)
            return np.ascontiguousarray(scores.swapaxes(0, 1)).reshape(*self.tables.shape[:2], -1), offset
        if self.site == "kv":
            apart = np.zeros((h_kv, repeat, h_kv, d), np.float32)
            for h in range(h_kv):
                apart[h, :, h] = q[h]
            u = apart.reshape(h_kv * repeat, d_kv)
        else:
            w_k = self.w_kv[:, :d_kv].reshape(-1, h_kv, d)  # (D, Hkv, d), a view
            u = (q @ w_k.transpose(1, 2, 0)).reshape(h_kv * repeat, -1)  # (Hkv, r, d) (Hkv, d, D)
        u = u if self.gain is None else u * self.gain
        u -= u.mean(axis=1, keepdims=True) if self.centred else 0
        return self.key_entries @ self.key_book.rule.cut(u, self.key_book), offset

    def values(self, weights: np.ndarray, row_sum: np.ndarray, acc: np.ndarray) -> None:
        """What each code has gathered, (C, K, H), and how much in all, (Hkv, r) -> acc (Hkv, r, d)."""
        h_kv, repeat, d = acc.shape
        d_kv = h_kv * d
        shift = row_sum[:, :, None] * self.bias[d_kv:].reshape(h_kv, 1, d)
        if self.tables is not None:
            shares = np.ascontiguousarray(weights.reshape(-1, h_kv, repeat).transpose(1, 2, 0))  # (Hkv, r, C K)
            np.matmul(shares, self._heads(self.tables, h_kv)[1], out=acc)
            acc += shift
            return
        sums = weights.swapaxes(1, 2) @ self.value_entries  # (C, H, K) (C, K, W)
        x = self.value_book.rule.combine(sums, self.value_book.width)
        x = x - x.mean(axis=1, keepdims=True) if self.centred else x
        x = x if self.gain is None else x * self.gain
        if self.site == "kv":
            every = x.reshape(h_kv, repeat, h_kv, d)
            for h in range(h_kv):
                acc[h] = every[h, :, h]
        else:
            w_v = self.w_kv[:, d_kv:].reshape(-1, h_kv, d)  # (D, Hkv, d), a view
            np.matmul(x.reshape(h_kv, repeat, -1), w_v.transpose(1, 0, 2), out=acc)
        acc += shift

    @staticmethod
    def _heads(tables: np.ndarray, h_kv: int) -> np.ndarray:
        """Tables (C, K, 2 d_kv) -> (2, Hkv, C K, d), a view."""
        return tables.reshape(tables.shape[0] * tables.shape[1], 2, h_kv, -1).transpose(1, 2, 0, 3)


class ScoredCodes:
    """Codes (m, C) scored in code space, all of them."""

    def __init__(self, space: CodeSpace, codes: np.ndarray, kernels: ModuleType) -> None:
        self.space = space
        n_key = space.key_book.n_codes
        self.key_codes = np.ascontiguousarray(codes[:, :n_key])
        self.value_codes = self.key_codes if space.site != "kv" else np.ascontiguousarray(codes[:, n_key:])
        self.scale = space.scale(self.key_codes, kernels)

    def attend(
        self, q: np.ndarray, softmax: Softmax, kernels: ModuleType, first: int = 0, near: Near | None = None
    ) -> None:
        parts, offset = self.space.parts(q)
        row_max, row_sum = softmax.row_max.reshape(-1), softmax.row_sum.reshape(-1)
        weights = kernels.attend_codes(self.key_codes, parts, self.value_codes, self.scale, offset, row_max, row_sum)
        self.space.values(weights, softmax.row_sum, softmax.acc)

    def arrays(self) -> Iterable[np.ndarray]:
        return [a for a in (self.key_codes, self.value_codes, self.scale) if a is not None]

    def segments(self) -> list[np.ndarray] | None:
        return None


class CountedKeys:
    """The distinct codes of far tokens (u,) with the logarithms of their counts, where one code fixes key and value."""

    def __init__(self, rows: np.ndarray, codes: np.ndarray, kernels: ModuleType) -> None:
        """rows (K, 2 d_kv): finished keys and values of all codes; codes (m, 1)."""
        self.rows = rows
        values, self.log_counts = distinct(codes, len(rows), kernels)
        self.codes = values.astype(np.uint16)

    def attend(
        self, q: np.ndarray, softmax: Softmax, kernels: ModuleType, first: int = 0, near: Near | None = None
    ) -> None:
        sums = softmax.acc, softmax.row_max, softmax.row_sum
        kernels.attend_rows(q, self.rows, self.codes, self.log_counts, *sums)

    def arrays(self) -> Iterable[np.ndarray]:
        return [self.codes, self.log_counts]

    def segments(self) -> list[np.ndarray] | None:
        n = len(self.codes)
        return [segment(t.CODED_ROWS, n, n, KEYS=self.rows, CODES=self.codes, BIAS=self.log_counts)]


class TurnedCodes:
    """Codes (m, C) whose keys and values are rebuilt for every new token, the keys turned by their positions."""

    def __init__(self, table: FarTable, codes: np.ndarray, turns: np.ndarray | None) -> None:
        """turns (m, d): of the far tokens, as the kernel `rotate` takes them; None: keys are not turned."""
        self.table, self.codes, self.turns = table, codes.copy(), turns

    def attend(
        self, q: np.ndarray, softmax: Softmax, kernels: ModuleType, first: int = 0, near: Near | None = None
    ) -> None:
        for a in range(first, len(self.codes), TILE):
            kv = self.table.far_kv(self.codes[a : a + TILE], kernels)
            if self.turns is not None:
                kernels.rotate(kv, self.turns[a : a + TILE], len(q))
            keys, values = kv.reshape(len(kv), 2, len(q), -1).transpose(1, 2, 0, 3)  # (2, Hkv, tile, d), views
            kernels.attend(q, keys, values, None, None, softmax.acc, softmax.row_max, softmax.row_sum, near)

    def arrays(self) -> Iterable[np.ndarray]:
        return [self.codes] if self.turns is None else [self.codes, self.turns]

    def segments(self) -> list[np.ndarray] | None:
        return None
