"""Tensor parallelism (Megatron-LM, arXiv 1909.08053): a rank owns heads and MLP columns of every block.

All tokens are on every rank. Two all-reduces of (T, D) per block add up the ranks' shares of the output projection and
of the MLP; nothing can hide them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.codec.codebook import Codec
from astra_mpi.config import ModelConfig
from astra_mpi.models.block import Block
from astra_mpi.partition import Layout, displs, even, weighted
from astra_mpi.strategies.all_tokens import AllTokens
from astra_mpi.strategies.base import Parts, recipe_of
from astra_mpi.strategies.spec import Spec
from astra_mpi.xp import beside


class TensorParallel(AllTokens):
    """Exact. Key and value heads, and MLP columns, are cut as evenly as they go, or by the ranks' speeds.

    With more ranks than key and value heads, some ranks own none; with more than MLP columns, some own nothing.
    """

    name = "tp"

    def __init__(self, parts: Parts, spec: Spec) -> None:
        super().__init__(parts, spec)
        heads, columns = (_own(n, parts) for n in (self.config.n_kv_heads, self.config.d_ff))
        self.shares = [Share(block, heads, columns) for block in self.blocks]

    @classmethod
    def obstacle(cls, spec: Spec, config: ModelConfig, codec: Codec | None, size: int) -> str | None:
        if recipe_of(config).gated:
            return "gated MLPs and rotary positions, as in Llama, are not cut here; use astra or sp"
        return None

    @property
    def n_exchanges(self) -> int:
        return 2 * len(self.blocks) if self.exchange.size > 1 else 0

    def formula_bytes(self, layout: Layout) -> list[int]:
        return [self.n_exchanges * int(layout.lengths.sum()) * self.config.d_model * 4] * layout.size

    def abandon(self) -> None:
        rows = self.xp.zeros((int(self.held.row_offsets[-1]), self.config.d_model), np.float32)
        while self.exchange.n_started < self.n_exchanges:
            self._sum(rows)

    def block(self, i: int, x: np.ndarray) -> np.ndarray:
        block, share = self.blocks[i], self.shares[i]
        norm_first = block.recipe.norm_first
        y = self._sum(self._attention(block, share, block.attention_input(x)))
        h = block.add_norm(x, y, "o", "norm2" if norm_first else "norm1")
        inner = h @ share.fc1
        self.kernels.activate(inner, share.fc1_bias, self.config.activation)  # (n, columns), in place
        y = inner @ share.fc2
        self.laps.mark("mlp")
        y = self._sum(y)
        if not norm_first:
            return block.add_norm(x, y, "fc2", "norm2")
        return self.kernels.add_residual(x, y, block.w["fc2.bias"])

    def _attention(self, block: Block, share: Share, h: np.ndarray) -> np.ndarray:
        """h (n, D) -> this rank's share (n, D) of the output projection, without its bias."""
        if not share.n_heads:
            return self.xp.zeros_like(h)
        qkv = h @ share.qkv
        qkv += share.qkv_bias
        self.laps.mark("project")
        n_queries = share.n_heads * self.config.d_head
        pair = qkv[:, :n_queries], qkv[:, n_queries:]
        attended = self.attended(block, pair, share.n_heads, share.n_kv_heads)
        self.laps.mark("attention")
        y: np.ndarray = attended @ share.o
        self.laps.mark("project")
        return y

    def _sum(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n, D), all-reduced."""
        total = self.exchange.all_reduce(rows.astype(np.float32, copy=False), self.n_class_rows * rows.shape[1] * 4)
        return total.astype(self.dtype, copy=False)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"bits_per_token_per_block": 2 * 32 * self.config.d_model}


class Share:
    """What one rank owns of a block: key and value heads with the query heads that read them, and MLP columns."""

    def __init__(self, block: Block, heads: slice, columns: slice) -> None:
        config, w, d = block.config, block.w, block.config.d_head
        repeat = config.n_heads // config.n_kv_heads
        self.n_kv_heads = heads.stop - heads.start
        self.n_heads = repeat * self.n_kv_heads
        queries = slice(repeat * heads.start * d, repeat * heads.stop * d)
        keys = slice(config.d_model + heads.start * d, config.d_model + heads.stop * d)
        values = slice(keys.start + config.d_kv, keys.stop + config.d_kv)
        own = np.r_[queries, keys, values]
        xp, own = block.scratch.xp, beside(block.w_qkv, own)
        self.qkv, self.qkv_bias = block.w_qkv[:, own], block.b_qkv[own]
        self.o = w["o.weight"][queries]
        self.fc1, self.fc1_bias = xp.ascontiguousarray(w["fc1.weight"][:, columns]), w["fc1.bias"][columns]
        self.fc2 = w["fc2.weight"][columns]


def _own(n: int, parts: Parts) -> slice:
    """This rank's part of n things."""
    size, rank = parts.exchange.size, parts.exchange.rank
    bounds = displs(even(n, size) if parts.weights is None else weighted(n, parts.weights))
    return slice(int(bounds[rank]), int(bounds[rank + 1]))
