"""Tensor parallelism (Megatron-LM, arXiv 1909.08053): a rank owns heads and MLP columns of every block.

All tokens are on every rank. Two all-reduces of (T, D) per block add up the ranks' shares of the output projection and
of the MLP; nothing can hide them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.codec.codec import Codec
from astra_mpi.config import ModelConfig
from astra_mpi.device.weights import forget, part
from astra_mpi.layout import Layout
from astra_mpi.models.block import Block
from astra_mpi.partition import displs, even, weighted
from astra_mpi.strategies.all_tokens import AllTokens
from astra_mpi.strategies.base import Parts, Steps, recipe_of
from astra_mpi.strategies.positions import near
from astra_mpi.strategies.spec import Spec
from astra_mpi.wire.pending import Summing


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

    @classmethod
    def obstacle(cls, spec: Spec, config: ModelConfig, codec: Codec | None, size: int) -> str | None:
        if size > 1 and recipe_of(config).qk_norm == "whole":
            return "queries are normalised over all heads together, which no rank has; use astra or sp"
        return None

    @property
    def block_bytes(self) -> int:
        own = ("norm", "post")
        whole = sum(block.w[name].nbytes for block in self.blocks for name in block.w if name.startswith(own))
        return whole + sum(share.nbytes for share in self.shares)

    @property
    def n_exchanges(self) -> int:
        return 2 * len(self.blocks) if self.exchange.size > 1 else 0

    @property
    def takes_halves(self) -> bool:
        return self.exchange.staging is None and super().takes_halves  # what is on a device is summed at once

    def formula_bytes(self, layout: Layout) -> list[int]:
        return [self.n_exchanges * int(layout.lengths.sum()) * self.config.d_model * 4] * layout.size

    def begin_empty(self, n: int) -> Summing:
        return self._start_sum(self.xp.zeros((int(self.held.row_offsets[-1]), self.config.d_model), np.float32))

    def steps(self, i: int, x: np.ndarray) -> Steps:
        block, share = self.blocks[i], self.shares[i]
        y = yield from self._sum(self._attention(i, share, block.attention_input(x)))
        h = block.add_attention(x, y)
        y = share.mlp(h)
        self.laps.mark("mlp")
        y = yield from self._sum(y)
        return block.add_mlp(x, y)

    def _attention(self, i: int, share: Share, h: np.ndarray) -> np.ndarray:
        """h (n, D) -> this rank's share (n, D) of the output projection, without its bias."""
        if not share.n_heads:
            return self.xp.zeros_like(h)
        pair = share.queries_keys_values(h)
        self.laps.mark("project")
        turns, scores = self.here.turns(i), near(self.config, i, self.positions, self.here)
        if turns is not None:
            share.turn(turns)
        if scores is not None and scores.relative is not None:
            scores = scores._replace(relative=scores.relative[share.heads])
        attended = self.attended(self.blocks[i], pair, share.n_heads, share.n_kv_heads, scores)
        self.laps.mark("attention")
        y = share.product(attended, "o", "product")
        self.laps.mark("project")
        return y

    def _sum(self, rows: np.ndarray) -> Steps:
        """Rows (n, D), all-reduced."""
        summing = self._start_sum(rows.astype(np.float32, copy=False))
        if self.n_exchanges:
            self.begun.append(summing)
            yield
        return summing.wait().astype(self.dtype, copy=False)

    def _start_sum(self, rows: np.ndarray) -> Summing:
        return self.exchange.start_sum(rows, self.n_class_rows * rows.shape[1] * 4)

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
        for norm, own in {"q_norm": queries, "k_norm": keys}.items():
            if f"{norm}.weight" in block.w:
                weight = block.w[f"{norm}.weight"]
                weights[f"{norm}.weight"] = weight if block.recipe.qk_norm == "head" else weight[own]
        self.heads = slice(repeat * heads.start, repeat * heads.stop)
        super().__init__(config, block.recipe, weights, block.kernels, block.scratch)
        self.n_heads, self.n_kv_heads = repeat * (heads.stop - heads.start), heads.stop - heads.start
        self.make_ready()
        self.joined = isinstance(self.w_qkv, np.ndarray | self.scratch.xp.ndarray)
        joined = {f"{layer}.weight" for layer in "qkv"} if self.joined else set()
        for name in self.layers.replaced | joined:  # what was joined or packed need not be held twice
            del self.w[name]

    @property
    def nbytes(self) -> int:
        return super().nbytes + (self.w_qkv.nbytes if self.joined else 0)


def _own(n: int, parts: Parts) -> slice:
    """This rank's part of n things."""
    size, rank = parts.exchange.size, parts.exchange.rank
    bounds = displs(even(n, size) if parts.weights is None else weighted(n, parts.weights))
    return slice(int(bounds[rank]), int(bounds[rank + 1]))
