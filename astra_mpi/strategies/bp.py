"""Block parallelism (DeTransformer, DATE 2024): an architecture that exchanges once per group of blocks.

All blocks of a group but the last are decoupled: P sub-blocks of width D / P with an MLP of inner width 4 D, one per
rank, over all tokens. Their outputs are gathered for the last block, an original one. Such a model has to be trained;
here the sub-blocks' weights are random, so only latency and bytes mean anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.attention import Attention
from astra_mpi.codec.codec import Codec
from astra_mpi.config import ModelConfig
from astra_mpi.device.xp import beside, take
from astra_mpi.layout import Layout
from astra_mpi.models.block import Block
from astra_mpi.models.recipe import block_shapes
from astra_mpi.partition import cut, even, ranges
from astra_mpi.strategies.all_tokens import AllTokens
from astra_mpi.strategies.base import Parts, Steps, is_plain, recipe_of
from astra_mpi.strategies.spec import Option, Spec
from astra_mpi.wire.pending import Pending


class BlockParallel(AllTokens):
    """form = "ag": every rank computes the original blocks whole; "sp": its own tokens, and a second all-gather."""

    name = "bp"
    options = (Option("form", "ag", ("ag", "sp")), Option("groups", 1))
    latency_only = "latency only: another architecture, random weights"

    def __init__(self, parts: Parts, spec: Spec) -> None:
        super().__init__(parts, spec)
        self.split = spec.word("form") == "sp"
        self.n_groups = spec.number("groups")
        self.weights = parts.weights
        size, rank = self.exchange.size, self.exchange.rank
        #: blocks that are original ones: the last of each group
        self.originals = set((np.cumsum(even(len(self.blocks), self.n_groups)) - 1).tolist())
        self.sub_config = sub_config(self.config, size)
        self.sub_blocks = [None if i in self.originals else self._sub_block(i, rank) for i in range(len(self.blocks))]
        for i, sub_block in enumerate(self.sub_blocks):
            (sub_block or self.blocks[i]).make_ready()
        width = self.sub_config.d_model
        self.columns = slice(rank * width, (rank + 1) * width)

    @classmethod
    def obstacle(cls, spec: Spec, config: ModelConfig, codec: Codec | None, size: int) -> str | None:
        recipe = recipe_of(config)
        if recipe.gated:
            return "decoupled blocks have no gated MLPs and rotary positions, as Llama has; use astra or sp"
        other = recipe.parallel or recipe.output_norms or config.d_queries != config.d_model
        if other or not is_plain(config, recipe):
            return (
                f"decoupled blocks have the parts of GPT-2 and BERT only, not all of {config.family}; use astra or sp"
            )
        for what, n in (
            ("width", config.d_model),
            ("heads", config.n_heads),
            ("key and value heads", config.n_kv_heads),
        ):
            if n % size:
                return f"{what} {n} cannot be cut into {size} equal parts; use a number of ranks that divides it"
        if config.n_layers < 2 * spec.number("groups"):
            return f"a group is at least one decoupled and one original block; {config.n_layers} blocks are too few"
        return None

    def _sub_block(self, i: int, rank: int) -> Block:
        drawn = sub_weights(self.sub_config, i, rank)
        weights = {name: self.xp.asarray(w, self.dtype) for name, w in drawn.items()}
        block = self.blocks[i]
        return Block(self.sub_config, block.recipe, weights, self.kernels, block.scratch)

    def begin(self, layout: Layout) -> None:
        super().begin(layout)
        size, rank, held = self.exchange.size, self.exchange.rank, self.held
        rows = int(held.row_offsets[-1])
        self.gathered = [rows * self.sub_config.d_model * 4] * size  # bytes of each rank
        own = Layout(cut(held.lengths, size, self.weights), rank, held.n_class, held.causal, replicas=size)
        self.own = own
        self.slices = [int(n) * self.config.d_model * 4 for n in own.token_counts]
        self.own_rows = held.row_offsets[:-1][own.row_sequence] + own.row_token
        self.content_rows = ranges(held.row_offsets[:-1] + held.own_class, held.lengths)
        place = np.empty(len(own.sequence_order), np.int64)  # of each gathered token among the content rows
        place[own.sequence_order] = np.arange(len(place))
        self.far_rows = self.content_rows[place[own.far_index]]

    @property
    def n_exchanges(self) -> int:
        return (1 + self.split) * self.n_groups if self.exchange.size > 1 else 0

    def begin_empty(self, n: int) -> Pending:
        counts = self.slices if self.split and n % 2 else self.gathered
        return self.exchange.start_empty(counts, at_once=self.n_turns)

    def formula_bytes(self, layout: Layout) -> list[int]:
        if self.exchange.size == 1:
            return [0]
        n_tokens = int(layout.lengths.sum())
        own = self.slices if self.split else [0] * layout.size
        return [self.n_groups * (n_tokens * self.sub_config.d_model * 4 + n) for n in own]

    def steps(self, i: int, x: np.ndarray) -> Steps:
        """Between the original blocks, x is this rank's columns (n, D / P)."""
        sub_block = self.sub_blocks[i]
        if sub_block is not None:
            if x.shape[1] != self.sub_config.d_model:
                x = self.xp.ascontiguousarray(x[:, self.columns])
            return self._whole_block(sub_block, x)
        if self.exchange.size > 1:
            x = yield from self._gather_columns(x)
            if self.split:
                x = yield from self._split_block(self.blocks[i], x)
                return x
        return self._whole_block(self.blocks[i], x)

    def _whole_block(self, block: Block, x: np.ndarray) -> np.ndarray:
        pair = block.queries_keys_values(block.attention_input(x))
        self.laps.mark("project")
        attended = self.attended(block, pair, block.config.n_heads, block.config.n_kv_heads)
        self.laps.mark("attention")
        x = block.output(x, attended)
        self.laps.mark("mlp")
        return x

    def _split_block(self, block: Block, x: np.ndarray) -> Steps:
        """x (n, D) of all rows -> the same of the next block: own rows computed here, the others' gathered."""
        own, config = self.own, block.config
        mine = take(x, self.own_rows)
        queries, kv = block.queries_keys_values(block.attention_input(mine))
        self.laps.mark("project")
        attention = Attention(queries, own, config.n_heads, config.n_kv_heads, self.kernels, block.scratch)
        attention.local(kv)
        self.laps.mark("attention")
        far = block.keys_values(block.attention_input(take(x, self.far_rows)))
        self.laps.mark("project")
        attention.far(far, own.far_offsets, None, last=True)
        attended = attention.result()
        self.laps.mark("attention")
        mine = block.output(mine, attended)
        self.laps.mark("mlp")
        message = _as_bytes(self.xp.ascontiguousarray(own.content(mine)))
        pending = self._start(message, self.slices)
        yield
        received = self.xp.concatenate(pending.wait()).view(np.float32)
        x[beside(x, self.content_rows)] = take(received.reshape(-1, x.shape[1]), own.sequence_order)
        x[beside(x, self.held.class_rows)] = take(mine, own.class_rows)
        return x

    def _start(self, message: np.ndarray, counts: list[int]) -> Pending:
        pending = self.exchange.start(message, counts, at_once=self.n_turns)
        self.begun.append(pending)
        pending.send()
        return pending

    def _gather_columns(self, x: np.ndarray) -> Steps:
        """(n, D / P) of every rank -> (n, D)."""
        pending = self._start(_as_bytes(x), self.gathered)
        self.exchange.as_class_bytes(self.n_class_rows * x.shape[1] * 4)
        yield
        parts = [part.view(np.float32).reshape(x.shape) for part in pending.wait()]
        return self.xp.concatenate(parts, axis=1).astype(self.dtype, copy=False)

    def describe(self) -> dict[str, Any]:
        per_group = 32 * self.config.d_model * (2 if self.split else 1)
        bits = per_group * self.n_groups / len(self.blocks)
        return super().describe() | {"bits_per_token_per_block": bits, "note": self.latency_only}

    def oracle_terms(self) -> dict[str, Any]:
        size = self.exchange.size
        return {
            "parts": [
                None if i in self.originals else [sub_weights(self.sub_config, i, rank) for rank in range(size)]
                for i in range(len(self.blocks))
            ]
        }


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    """Rows (n, width), contiguous, as the bytes of float32."""
    return rows.astype(np.float32, copy=False).reshape(-1).view(np.uint8)


def sub_config(config: ModelConfig, size: int) -> ModelConfig:
    """The shape of one of `size` sub-blocks."""
    heads = config.n_heads // size, config.n_kv_heads // size
    return ModelConfig(config.d_model // size, *heads, 1, 4 * config.d_model, config.activation, config.norm_eps)


def sub_weights(config: ModelConfig, i: int, rank: int) -> dict[str, np.ndarray]:
    """Name -> float32 of sub-block `rank` in place of block i: N(0, 1 / inputs), norms near 1. Always the same."""
    rng = np.random.default_rng([i, rank])
    weights = {}
    for name, shape in block_shapes(config).items():
        drawn = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0]))
        weights[name.removeprefix("blocks.0.")] = drawn + np.float32("norm" in name and name.endswith("weight"))
    return weights
