"""Sequence parallelism in full precision (Voltage): activations, or keys and values, are all-gathered as float32."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.exchange import Exchange, Pending
from astra_mpi.models.block import Block
from astra_mpi.partition import Layout
from astra_mpi.strategies.base import FarKeys, TokenParallel


class SequenceParallel(TokenParallel):
    """Exact. `gather` = "x": block inputs travel and far keys and values are recomputed; "kv": they travel."""

    name = "sp"

    def __init__(self, blocks: list[Block], exchange: Exchange, kernels: ModuleType, gather: str = "x") -> None:
        super().__init__(blocks, exchange, kernels)
        require(gather in ("x", "kv"), f"gather = '{gather}' is unknown; use x or kv")
        self.gather = gather
        self.site = "hidden" if gather == "x" else "kv"
        config = blocks[0].config
        self.width = config.d_model if gather == "x" else 2 * config.d_kv

    def message_bytes(self, layout: Layout) -> list[int]:
        return [int(n) * self.width * 4 for n in layout.token_counts]

    def send(self, i: int, payload: np.ndarray) -> Pending:
        return self.exchange.start(np.ascontiguousarray(payload).reshape(-1).view(np.uint8), self.counts)

    def receive(self, i: int, pending: Pending) -> FarKeys:
        messages = np.concatenate(pending.wait()).view(np.float32).reshape(-1, self.width)
        far = messages[self.planned.far_index]  # (m, width)
        if self.gather == "x":
            far = self.blocks[i].keys_values(self.blocks[i].attention_input(far))
        return FarKeys(far, self.planned.far_offsets)

    def describe(self) -> dict[str, Any]:
        return {"codec": None, "bits_per_token_per_block": 32 * self.width, "choices": {"gather": self.gather}}
