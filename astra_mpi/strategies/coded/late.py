"""Codes that come late: a block computes with what is known of far tokens while its codes travel.

They have a whole block's time. They must be there where the next block needs its far keys, which it makes from them, or
from the states that they move (docs/explanation/waiting.md). Blocks that the codec says are awaited wait for their own.
"""

from __future__ import annotations

from typing import Protocol

from astra_mpi.caches.cache import Cache
from astra_mpi.codec.codec import Codec
from astra_mpi.models.block import Block
from astra_mpi.wire.laps import Laps
from astra_mpi.wire.pending import Pending


class Coded(Protocol):
    """A strategy with codes."""

    blocks: list[Block]
    codec: Codec
    cache: Cache | None
    laps: Laps

    def take_codes(self, i: int, pending: Pending) -> None:
        """Wait for the codes of block i."""

    def codes_came(self, i: int, keeps: bool) -> None:
        """The codes of block i are there; keeps: decoding keeps what they make of far keys."""

    def no_codes(self, i: int) -> None:
        """Block i sends none."""


class Late:
    """The exchange that is under way while blocks compute."""

    #: exchanges under way at once: a block starts its own before it waits for that of the block before it
    AT_ONCE = 2

    def __init__(self, coded: Coded) -> None:
        self.coded = coded
        self._under_way: tuple[int, Pending] | None = None
        #: decoding keeps far keys as codes have made them, those of the last block too, which nothing else needs
        self.keeps = False

    def begin(self) -> None:
        """Before a pass."""
        cache, self._under_way = self.coded.cache, None
        self.keeps = cache is not None and cache.keeps_far

    @property
    def n_coded(self) -> int:
        """The blocks before this one may send codes."""
        last = len(self.coded.blocks) - 1
        return last + (self.keeps or self.awaits(last))

    def awaits(self, i: int) -> bool:
        """Whether block i waits for its own codes, as if they were not late."""
        return i in self.coded.codec.config.awaited

    def collect(self) -> None:
        """Wait for the codes under way, if any."""
        if self._under_way is not None:
            (i, pending), self._under_way = self._under_way, None
            self.coded.take_codes(i, pending)
            self.coded.codes_came(i, self.keeps)
            self.coded.laps.mark("decode")

    def leave(self, i: int, pending: Pending | None) -> None:
        """The codes of block i travel from now on, unless it sends none."""
        if pending is None:
            self.coded.no_codes(i)
        else:
            self._under_way = i, pending
