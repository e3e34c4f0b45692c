"""Mixed-precision attention (arXiv 2505.19342, Eq. 1) over packed rows: a local part, a far part, and their merge.

Each part is one step of an online softmax per sequence, so that adding the far part to the local one is the exact
log-sum-exp merge, whatever arrives when.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.device.scratch import Scratch
from astra_mpi.device.xp import beside
from astra_mpi.kernels.near import Near
from astra_mpi.layout import Layout


class Attention:
    """The running softmax of one block for the queries (n, H d) of this rank."""

    def __init__(
        self,
        queries: np.ndarray,
        layout: Layout,
        n_heads: int,
        n_kv_heads: int,
        kernels: ModuleType,
        scratch: Scratch,
        near: Near | None = None,
    ) -> None:
        """near: what is done with scores, with the places of the queries if they matter."""
        self.layout, self.kernels, self.scratch = layout, kernels, scratch
        self.queries, self.n_heads, self.n_kv_heads = queries, n_heads, n_kv_heads
        #: all sequences in one launch, where a backend has it; the running state then lies row by row
        self.packed = hasattr(kernels, "attend_packed")
        self.near = near
        self.heads = _split(queries, n_heads)  # (H, n, d), a view
        n, d = queries.shape[0], queries.shape[1] // n_heads
        self.acc = scratch("attention sums", n_heads * n * d, dtype=np.float32)
        self.row_max, self.row_sum = scratch("attention maxima", 2, n_heads * n, dtype=np.float32)
        self._begun, self._done, self._out = False, False, scratch("attended", n, n_heads * d)
        if self.packed:
            self.acc[:], self.row_max[:], self.row_sum[:] = 0, -np.inf, 0
        else:
            self._parts = list(self._sequences())

    def local(self, kv: np.ndarray, last: bool = False) -> None:
        """Attend to this rank's own rows, kv (n, 2 d_kv) in full precision; last: to nothing else after them."""
        near = self.near if self.near is None else self.near._replace(key_places=self.near.query_places)
        self._attend(kv, self.layout.row_offsets, None, 0 if self.layout.causal else None, near=near, last=last)

    def so_far(self, kv: np.ndarray, offsets: np.ndarray, places: np.ndarray | None) -> None:
        """Attend to all keys of the one sequence up to each of its rows, kv (m, 2 d_kv), whose last rows are this
        rank's own, and to nothing else. places (m,): the keys' positions, where they matter."""
        near = self.near if self.near is None else self.near._replace(key_places=places)
        self._attend(kv, offsets, None, len(kv) - len(self.queries), near=near, last=True)

    def far(
        self,
        kv: np.ndarray,
        offsets: np.ndarray,
        key_bias: np.ndarray | None,
        rows: np.ndarray | None = None,
        ends: np.ndarray | None = None,
        places: np.ndarray | None = None,
        last: bool = False,
    ) -> None:
        """Attend to far keys kv (m, 2 d_kv), those of sequence s at offsets[s]:offsets[s + 1]; key_bias (m,).

        rows, ends: see `FarKeys`. places (m,): the keys' positions, where they matter. Replicas of sinks see none of
        them. last: nothing is attended to after them.
        """
        near = self.near if self.near is None else self.near._replace(key_places=places)
        replicas = [(state, index, state[index].copy()) for state, index in self._replica_states()]
        self._attend(kv, offsets, key_bias, None, rows, ends, near, last and not replicas)
        for state, index, before in replicas:
            state[index] = before

    @property
    def sums(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The running state, views: sums (H, n, d), maxima and sums of weights (H, n). Of one sequence alone."""
        heads, n, d = self.heads.shape
        sizes = self.acc[: heads * n * d], self.row_max[: heads * n], self.row_sum[: heads * n]
        return sizes[0].reshape(heads, n, d), sizes[1].reshape(heads, n), sizes[2].reshape(heads, n)

    def result(self) -> np.ndarray:
        """(n, H d)."""
        if self._done:
            return self._out
        if self.packed:
            self.kernels.finish_packed(self.acc, self.row_sum, self._out, self.n_heads)
            return self._out
        for _, rows, acc, _, row_sum in self._parts:
            self.kernels.finish(acc, row_sum, self._out[rows])
        return self._out

    def _attend(
        self,
        kv: np.ndarray,
        offsets: np.ndarray,
        key_bias: np.ndarray | None,
        causal: int | None,
        key_rows: np.ndarray | None = None,
        ends: np.ndarray | None = None,
        near: Near | None = None,
        last: bool = False,
    ) -> None:
        if self.packed:
            heads, spans = (self.n_heads, self.n_kv_heads), (self.layout.row_offsets, offsets, ends)
            state = self.acc, self.row_max, self.row_sum
            self.kernels.attend_packed(self.queries, kv, heads, spans, key_bias, key_rows, causal, *state, near)
            return
        width = kv.shape[1] // 2
        keys, values = _split(kv[:, :width], self.n_kv_heads), _split(kv[:, width:], self.n_kv_heads)
        for s, rows, acc, row_max, row_sum in self._parts:
            far = slice(offsets[s], offsets[s + 1])
            chosen: dict[str, Any] = {} if key_rows is None else {"key_rows": key_rows[far]}
            chosen |= {"begins": not self._begun, "out": self._out[rows] if last else None}
            own_keys = far if key_rows is None else slice(None)
            bias = None if key_bias is None else key_bias[far]
            state, own = (acc, row_max, row_sum), near
            if near is not None and near.placed:
                own = near._replace(query_places=near.query_places[rows], key_places=near.key_places[far])
            own_kv = keys[:, own_keys], values[:, own_keys]
            self.kernels.attend(self.heads[:, rows], *own_kv, bias, causal, *state, own, **chosen)
        self._begun, self._done = True, last

    def _replica_states(self) -> Iterator[tuple[np.ndarray, Any]]:
        """Parts of the running state, and where in them that of the replicas of sinks is."""
        heads, n, d = self.heads.shape
        if not len(self.layout.replica_rows):
            return
        if self.packed:
            where = beside(self.acc, self.layout.replica_rows)
            for state, width in ((self.acc, heads * d), (self.row_max, heads), (self.row_sum, heads)):
                yield state[: n * width].reshape(n, width), where
            return
        for s, _, *states in self._parts:
            for state in states:
                yield state, np.s_[:, : self.layout.fronts[s]]

    def _sequences(self) -> Iterator[tuple[int, slice, np.ndarray, np.ndarray, np.ndarray]]:
        """Per sequence with rows here: its index, its rows, and its contiguous part of the running state."""
        heads, _, d = self.heads.shape
        offsets = self.layout.row_offsets
        for s, (a, b) in enumerate(pairwise(offsets)):
            if a < b:
                part = slice(a * heads, b * heads)
                acc = self.acc[a * heads * d : b * heads * d].reshape(heads, b - a, d)
                yield (
                    s,
                    slice(a, b),
                    acc,
                    self.row_max[part].reshape(heads, b - a),
                    self.row_sum[part].reshape(heads, b - a),
                )


def _split(x: np.ndarray, n_heads: int) -> np.ndarray:
    """(n, heads * d) -> (heads, n, d), a view."""
    return x.reshape(len(x), n_heads, -1 if len(x) else x.shape[1] // n_heads).transpose(1, 0, 2)
