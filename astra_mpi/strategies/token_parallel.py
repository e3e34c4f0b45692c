"""Token parallelism: what `single`, `sp`, `segment_means` and `astra` share.

A rank owns whole weights and its slice of every sequence. A block has at most one exchange. It starts as soon as
its payload exists, and is waited for after the local attention, so that projection and local attention hide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from astra_mpi.attention import Attention
from astra_mpi.exchange import Pending
from astra_mpi.partition import Layout, cut
from astra_mpi.strategies.base import Strategy


class FarKeys(NamedTuple):
    """Keys and values of other ranks' tokens."""

    kv: np.ndarray  # (m, 2 d_kv)
    offsets: np.ndarray  # (B + 1,) where each sequence's begin
    bias: np.ndarray | None = None  # (m,) added to the scores


class TokenParallel(Strategy):
    """As it stands, it sends nothing."""

    #: what is sent: "hidden" block inputs, "normed" attention inputs, "kv" keys and values, or nothing
    site: str | None = None
    #: its answer bears messages that do not come
    may_miss: bool = False

    def layout(self, lengths: np.ndarray, n_class: int, causal: bool, weights: Sequence[float] | None) -> Layout:
        size = self.exchange.size
        return Layout(cut(lengths, size, weights), self.exchange.rank, n_class, causal, replicas=size)

    def message_bytes(self, layout: Layout) -> list[int]:
        """Per rank, the bytes it puts into one exchange."""
        return [0] * layout.size

    def formula_bytes(self, layout: Layout) -> list[int]:
        return [self.n_exchanges * n for n in self.message_bytes(layout)]

    def send(self, i: int, payload: np.ndarray) -> Pending | None:
        """Start the exchange of block i; payload: this rank's content tokens at `site`, (n_r, width)."""
        return None

    def receive(self, i: int, pending: Pending) -> FarKeys:
        """Wait for block i's exchange and turn what came into far keys and values."""
        raise NotImplementedError(f"strategy {self.name} receives nothing")

    @property
    def n_exchanges(self) -> int:
        """Block exchanges of one forward pass."""
        return len(self.blocks) if self.sends else 0

    @property
    def sends(self) -> bool:
        """Whether exchanges take place: not on one rank."""
        return self.exchange.size > 1 and self.site is not None

    def begin(self, layout: Layout) -> None:
        super().begin(layout)
        self.counts = self.message_bytes(layout)

    def abandon(self) -> None:
        self.exchange.drain(self.counts, self.n_exchanges, self.may_miss)

    def block(self, i: int, x: np.ndarray) -> np.ndarray:
        block, pending = self.blocks[i], None
        if self.site == "hidden":
            pending = self._start(i, x)
        h = block.attention_input(x)
        if self.site == "normed":
            pending = self._start(i, h)
        q, kv = block.queries_keys_values(h)
        self.laps.mark("project")
        if self.site == "kv":
            pending = self._start(i, kv)
        heads = block.config.n_heads, block.config.n_kv_heads
        attention = Attention(q, self.planned, *heads, self.kernels, block.scratch)
        attention.local(kv)
        self.laps.mark("attention")
        if pending is not None:
            far = self.receive(i, pending)
            self.laps.mark("decode")
            attention.far(*far)
        attended = attention.result()
        self.laps.mark("attention")
        x = block.output(x, attended)
        self.laps.mark("mlp")
        return x

    def _start(self, i: int, rows: np.ndarray) -> Pending | None:
        return self.send(i, self.planned.content(rows)) if self.sends else None
