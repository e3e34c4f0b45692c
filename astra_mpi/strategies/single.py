"""Everything on rank 0: the baseline that every other strategy is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from astra_mpi.exchange import Pending
from astra_mpi.partition import Layout, cut
from astra_mpi.strategies.base import FarKeys, TokenParallel


class Single(TokenParallel):
    """Rank 0 owns all tokens; the other ranks only receive the answer."""

    name = "single"
    site = None

    def layout(self, lengths: np.ndarray, n_class: int, causal: bool, weights: Sequence[float] | None) -> Layout:
        size = self.exchange.size
        alone = [1.0] + [0.0] * (size - 1)
        return Layout(cut(lengths, size, alone), self.exchange.rank, n_class, causal, replicas=1)

    def message_bytes(self, layout: Layout) -> list[int]:
        return [0] * layout.size

    def send(self, i: int, payload: np.ndarray) -> Pending:
        raise NotImplementedError("single sends nothing")

    def receive(self, i: int, pending: Pending) -> FarKeys:
        raise NotImplementedError("single receives nothing")

    def describe(self) -> dict[str, Any]:
        return {"codec": None, "bits_per_token_per_block": 0, "choices": {}}
