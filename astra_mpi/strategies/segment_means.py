"""Segment means (PRISM, arXiv 2507.12145): a slice is seen by other ranks as means of a few consecutive tokens.

Far keys and values are made from the means of block inputs. A mean of n tokens counts n times: log n is added to its
score. No training is needed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from astra_mpi.codec.codec import Codec
from astra_mpi.config import ModelConfig
from astra_mpi.costs.wires import Wire, segment_wire
from astra_mpi.costs.work import shape_of
from astra_mpi.device.xp import beside, take
from astra_mpi.layout import Layout
from astra_mpi.partition import displs
from astra_mpi.strategies.base import Parts, recipe_of
from astra_mpi.strategies.far_keys import FarKeys
from astra_mpi.strategies.spec import Option, Spec
from astra_mpi.strategies.token_parallel import TokenParallel
from astra_mpi.wire.pending import Pending


class SegmentMeans(TokenParallel):
    """`ratio` tokens per mean, the last mean of a slice of fewer. Approximate; exact with ratio 1."""

    name = "segment_means"
    options = (Option("ratio", 8, always=True),)
    site = "hidden"
    continues = False

    def __init__(self, parts: Parts, spec: Spec) -> None:
        super().__init__(parts, spec)
        self.ratio = spec.number("ratio")

    @classmethod
    def obstacle(cls, spec: Spec, config: ModelConfig, codec: Codec | None, size: int) -> str | None:
        recipe = recipe_of(config)
        if recipe.rotary or recipe.relative or any(config.windows):
            return "a mean of several tokens has no position, which rotary keys and windows need; use astra or sp"
        return None

    def message_bytes(self, layout: Layout) -> list[int]:
        return [int(n) * self.config.d_model * 4 for n in -(-layout.counts // self.ratio).sum(axis=0)]

    def wire_costs(self) -> Wire:
        return segment_wire(shape_of(self.config), self.ratio)

    def begin(self, layout: Layout) -> None:
        super().begin(layout)
        self.means = replace(layout, counts=-(-layout.counts // self.ratio), n_class=0)
        own_sizes = run_lengths(layout.counts[:, layout.rank], self.ratio)
        self.own_starts, self.own_lengths = displs(own_sizes)[:-1], own_sizes[:, None].astype(np.float32)
        sizes = run_lengths(layout.counts.T.ravel(), self.ratio)  # of the gathered means, rank after rank
        self.bias = np.log(sizes[self.means.far_index]).astype(np.float32)

    def send(self, i: int, payload: np.ndarray) -> Pending:
        means = payload
        if len(payload):
            means = self.kernels.segment_sum(payload, self.own_starts)
            means /= beside(means, self.own_lengths)
        self.laps.mark("encode")
        return self.start(means.reshape(-1).view(np.uint8))

    def receive(self, i: int, pending: Pending) -> FarKeys:
        means = self.xp.concatenate(pending.wait()).view(np.float32).reshape(-1, self.config.d_model)
        far = take(means, self.means.far_index).astype(self.dtype, copy=False)
        block = self.blocks[i]
        kv = block.keys_values(block.attention_input(far))
        return FarKeys(kv, self.means.far_offsets, beside(kv, self.bias))

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"bits_per_token_per_block": 32 * self.config.d_model / self.ratio}

    def oracle_terms(self) -> dict[str, Any]:
        return {"ratio": self.ratio} if self.sends else {}


def run_lengths(counts: np.ndarray, ratio: int) -> np.ndarray:
    """Slices of `counts` tokens in runs of `ratio`, the last run of a slice of what is left: lengths of all runs."""
    n_runs = -(-counts // ratio)
    lengths = np.full(int(n_runs.sum()), ratio, np.int64)
    slices = n_runs > 0
    lengths[np.cumsum(n_runs)[slices] - 1] = (counts - (n_runs - 1) * ratio)[slices]
    return lengths
