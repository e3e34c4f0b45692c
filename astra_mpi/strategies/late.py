"""Codes that come late: a block computes with what was predicted of far tokens while its codes travel.

They have a whole block's time. They must be there where the next block needs its far keys, for its prediction starts
from the states that they move (docs/explanation/predicted.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from astra_mpi.device.xp import take
from astra_mpi.strategies.token_parallel import FarKeys
from astra_mpi.wire.exchange import Pending

if TYPE_CHECKING:
    from astra_mpi.strategies.astra import Astra
    from astra_mpi.strategies.states import States


class Late:
    """What `Astra` does with the codes of a pass, where they are late."""

    #: exchanges under way at once: a block starts its own before it waits for that of the block before it
    AT_ONCE = 2

    def __init__(self, astra: Astra, states: States) -> None:
        self.astra, self.states = astra, states

    def begin(self) -> None:
        """Before a pass."""
        cache = self.astra.cache
        #: decoding keeps far keys as codes have made them, those of the last block too, which nothing else needs
        self.keeps = cache is not None and cache.keeps_far
        self._under_way: tuple[int, Pending] | None = None

    @property
    def n_coded(self) -> int:
        """The blocks before this one may send codes."""
        return len(self.astra.blocks) - (not self.keeps)

    def far_keys(self, i: int, pending: Pending | None) -> FarKeys:
        """Of block i, which has codes, as it expects them; its own codes are `pending`, unless it sends none."""
        kv = self.states.expected_kv(i, followed=self.keeps)
        if pending is None:
            self.astra.no_codes(i)
        else:
            self.states.expect_own(i + 1)
            self._under_way = i, pending
        _, offsets, tokens = self.astra._far(i)
        return FarKeys(kv, offsets, tokens=tokens)

    def collect(self) -> None:
        """Wait for the codes under way, if any: they move the states, and decoding keeps what they make of keys."""
        if self._under_way is None:
            return
        (i, pending), self._under_way = self._under_way, None
        astra = self.astra
        astra.take_codes(i, pending)
        index, offsets, tokens = astra._far(i)
        codes, came = take(astra.codes[i], index), astra._came(i, index)
        if self.keeps:
            far = FarKeys(self.states.far_kv(i, codes, came), offsets, tokens=tokens)
            astra.turn_far(i, far)
            astra.keep_far(i, far)
        else:
            self.states.move_far(i, codes, came)
        astra.laps.mark("decode")
