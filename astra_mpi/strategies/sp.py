"""Sequence parallelism (Voltage): activations, or keys and values, are all-gathered."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np

from astra_mpi.caches.kept import Kept
from astra_mpi.caches.rows import rows_of
from astra_mpi.costs.wires import Wire, sp_wire
from astra_mpi.costs.work import shape_of
from astra_mpi.device.xp import take, to_host
from astra_mpi.layout import Layout
from astra_mpi.strategies.base import Parts
from astra_mpi.strategies.far_keys import FarKeys
from astra_mpi.strategies.reach import Reach
from astra_mpi.strategies.spec import Option, Spec
from astra_mpi.strategies.token_parallel import TokenParallel
from astra_mpi.strategies.wire import WIRES, pack_rows, row_bytes, unpack_rows
from astra_mpi.wire.pending import Pending


class SequenceParallel(TokenParallel):
    """gather = "x": block inputs travel and far keys and values are recomputed; "kv": keys and values travel.

    Exact with float32 on the wire; float16 and int8 round what travels.
    """

    name = "sp"
    sends_reached = True
    options = (Option("gather", "x", ("x", "kv")), Option("wire", "float32", WIRES))

    def __init__(self, parts: Parts, spec: Spec) -> None:
        super().__init__(parts, spec)
        self.gather, self.wire = spec.word("gather"), spec.word("wire")
        self.site = "hidden" if self.gather == "x" else "kv"
        self.row_bytes = row_bytes(self.config.d_model if self.gather == "x" else 2 * self.config.d_kv, self.wire)
        self.sent: list[np.ndarray] | None = None  # per block (n_r, row_bytes), kept where it is recorded

    def twin(self) -> SequenceParallel:
        twin = copy(self)
        twin.sent = None if self.sent is None else self.sent.copy()
        return twin

    def message_bytes(self, layout: Layout) -> list[int]:
        return [int(n) * self.row_bytes for n in layout.token_counts]

    def bytes_of(self, i: int, reach: Reach) -> list[int]:
        return [int(n) * self.row_bytes for n in reach.token_counts]

    def wire_costs(self) -> Wire:
        return sp_wire(shape_of(self.config), self.gather, self.wire)

    def send(self, i: int, payload: np.ndarray) -> Pending:
        message = pack_rows(payload, self.wire)
        self.laps.mark("encode")
        if self.cache is not None:
            self.cache.note_seen(i, message.reshape(-1, self.row_bytes))
        if self.sent is not None:
            self.sent[i] = to_host(message).reshape(-1, self.row_bytes)
        return self.start(message)

    def receive(self, i: int, pending: Pending) -> FarKeys:
        rows = self.xp.concatenate(pending.wait()).reshape(-1, self.row_bytes)
        far = self._keys_values(i, take(rows, self.reach.far_index))
        return FarKeys(far, self.reach.far_offsets, tokens=self.reach.tokens)

    def _spread(self, rows: np.ndarray, reach: Reach) -> np.ndarray:
        """What this rank sent, as rows of all its content tokens; zeros where nobody hears them."""
        every = np.zeros((int(self.planned.token_counts[self.planned.rank]), self.row_bytes), np.uint8)
        if len(rows):
            every[slice(None) if reach.own is None else reach.own] = rows
        return every

    def _keys_values(self, i: int, rows: np.ndarray) -> np.ndarray:
        """Rows as they travel (m, row_bytes) -> [K | V] (m, 2 d_kv), not turned."""
        far: np.ndarray = unpack_rows(rows, self.wire).astype(self.dtype, copy=False)
        return self.blocks[i].keys_values(self.blocks[i].attention_input(far)) if self.gather == "x" else far

    def as_seen(self, i: int, payload: np.ndarray) -> np.ndarray:
        return pack_rows(payload, self.wire).reshape(-1, self.row_bytes)

    def seen_bytes(self, i: int, n_tokens: int) -> int:
        return n_tokens * self.row_bytes

    def kept_of(self, i: int, seen: np.ndarray, turns: np.ndarray | None) -> Kept:
        kv = self._keys_values(i, seen)
        if turns is not None:
            self.kernels.rotate(kv, turns, self.config.n_kv_heads)
        return rows_of(self.config, kv, None, self.kernels)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"bits_per_token_per_block": 8 * self.row_bytes}

    def record(self) -> None:
        self.sent = [np.empty((0, 0), np.uint8)] * len(self.blocks)

    def oracle_terms(self) -> dict[str, Any]:
        if self.wire == "float32" or not self.sends:
            return {}
        assert self.sent is not None
        own = [self._spread(rows, reach) for rows, reach in zip(self.sent, self.reaches, strict=True)]
        seen = [unpack_rows(self.all_rows(rows), self.wire) for rows in own]
        return {"wire": self.wire, "gather": self.gather, "seen": seen}
