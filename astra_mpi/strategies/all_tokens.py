"""What `tp` and `bp` share: every rank computes all rows, and rank 0 answers for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from astra_mpi.attention import Attention
from astra_mpi.kernels.near import Near
from astra_mpi.layout import Layout
from astra_mpi.models.block import Block
from astra_mpi.partition import Cut
from astra_mpi.strategies.base import Strategy, on_rank_0
from astra_mpi.strategies.positions import PlacedRows


class AllTokens(Strategy):
    """Rows of every rank: sequence after sequence, class token and content tokens."""

    _whole: Layout

    def layout(self, lengths: np.ndarray, n_class: int, causal: bool, weights: Cut, spread: bool = False) -> Layout:
        return on_rank_0(lengths, self.exchange, n_class, causal)

    def begin(self, layout: Layout) -> None:
        super().begin(layout)
        self._whole = replace(layout, rank=0)
        self.here = PlacedRows(self.positions, self._whole.packed_rows, self.blocks)

    @property
    def held(self) -> Layout:
        return self._whole

    def answered(self, x: np.ndarray) -> np.ndarray:
        return x if self.exchange.rank == 0 else x[:0]

    @property
    def n_class_rows(self) -> int:
        return len(self.held.class_rows)

    def attended(
        self,
        block: Block,
        qkv: tuple[np.ndarray, np.ndarray],
        n_heads: int,
        n_kv_heads: int,
        scores: Near | None = None,
    ) -> np.ndarray:
        """Scaled queries (n, n_heads d) and [K | V] of all rows -> what attention gives (n, n_heads d)."""
        attention = Attention(qkv[0], self.held, n_heads, n_kv_heads, self.kernels, block.scratch, scores)
        attention.local(qkv[1], last=True)
        return attention.result()
