"""Tensor parallelism (Megatron-LM, arXiv 1909.08053): a rank owns heads and MLP columns of every block.

All tokens are on every rank. Two all-reduces of (T, D) per block add up the ranks' shares of the output projection and
of the MLP; nothing can hide them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.device.weights import SideBySide, forget, part
from astra_mpi.models.block import Block
from astra_mpi.partition import Layout, displs, even, weighted
from astra_mpi.strategies.all_tokens import AllTokens
from astra_mpi.strategies.base import Parts
from astra_mpi.strategies.spec import Spec


class TensorParallel(AllTokens):
    """Exact. Key and value heads, and MLP columns, are cut as evenly as they go, or by the ranks' speeds.

    With more ranks than key and value heads, some ranks own none; with more than MLP columns, some own nothing.
    """

    name = "tp"
    reads_part = True

    def __init__(self, parts: Parts, spec: Spec) -> None:
        super().__init__(parts, spec)
        heads, columns = (_own(n, parts) for n in (self.config.n_kv_heads, self.config.d_ff))
        self.shares = [Share(block, heads, columns) for block in self.blocks]

    def begin(self, layout: Layout) -> None:
        super().begin(layout)
        if self.turns is not None:
            self.held_turns = self.xp.asarray(self.turns)

    @property
    def block_bytes(self) -> int:
        whole = sum(block.w[name].nbytes for block in self.blocks for name in block.w if "norm" in name)
        return whole + sum(share.nbytes for share in self.shares)

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
        y = share.product(share.inner(h), "fc2", "product")
        self.laps.mark("mlp")
        y = self._sum(y)
        if not norm_first:
            return block.add_norm(x, y, "fc2", "norm2")
        return self.kernels.add_residual(x, y, block.w.get("fc2.bias"))

    def _attention(self, block: Block, share: Share, h: np.ndarray) -> np.ndarray:
        """h (n, D) -> this rank's share (n, D) of the output projection, without its bias."""
        if not share.n_heads:
            return self.xp.zeros_like(h)
        pair = share.queries_keys_values(h)
        self.laps.mark("project")
        if self.turns is not None:
            share.turn(self.held_turns)
        attended = self.attended(block, pair, share.n_heads, share.n_kv_heads)
        self.laps.mark("attention")
        y = share.product(attended, "o", "product")
        self.laps.mark("project")
        return y

    def _sum(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n, D), all-reduced."""
        total = self.exchange.all_reduce(rows.astype(np.float32, copy=False), self.n_class_rows * rows.shape[1] * 4)
        return total.astype(self.dtype, copy=False)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"bits_per_token_per_block": 2 * 32 * self.config.d_model}


class Share(Block):
    """What one rank owns of a block: key and value heads with the query heads that read them, and MLP columns.

    Copies, in the weights' own type: what other ranks own need not stay in memory. Biases after the all-reduces stay
    with the whole block.
    """

    def __init__(self, block: Block, heads: slice, columns: slice) -> None:
        config, d = block.config, block.config.d_head
        repeat = config.n_heads // config.n_kv_heads
        queries = slice(repeat * heads.start * d, repeat * heads.stop * d)
        keys = slice(heads.start * d, heads.stop * d)
        weights: dict[str, Any] = {}
        for layer, own in {"q": queries, "k": keys, "v": keys, "fc1": columns, "gate": columns}.items():
            if f"{layer}.weight" in block.w:
                weights[f"{layer}.weight"] = part(block.w[f"{layer}.weight"], columns=own)
            if f"{layer}.bias" in block.w:
                weights[f"{layer}.bias"] = block.w[f"{layer}.bias"][own]
        for layer, own in {"o": queries, "fc2": columns}.items():
            weights[f"{layer}.weight"] = part(block.w[f"{layer}.weight"], rows=own)
        for name in weights:
            forget(block.w[name])
        super().__init__(config, block.recipe, weights, block.kernels, block.scratch)
        self.n_heads, self.n_kv_heads = repeat * (heads.stop - heads.start), heads.stop - heads.start
        self.b_qkv  # noqa: B018 - made now, from what goes
        self.joined = not isinstance(self.w_qkv, SideBySide)
        if self.joined:  # what was joined need not be held twice
            for layer in "qkv":
                del self.w[f"{layer}.weight"]

    @property
    def nbytes(self) -> int:
        return super().nbytes + (self.w_qkv.nbytes if self.joined else 0)


def _own(n: int, parts: Parts) -> slice:
    """This rank's part of n things."""
    size, rank = parts.exchange.size, parts.exchange.rank
    bounds = displs(even(n, size) if parts.weights is None else weighted(n, parts.weights))
    return slice(int(bounds[rank]), int(bounds[rank + 1]))
