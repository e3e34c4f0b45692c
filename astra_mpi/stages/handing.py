"""What a stage of blocks hands on to the next: a rank's rows to the one in the same place or, where ranks are to know
the rows of all tokens, to all.

Codes of what a prediction misses follow what ranks hold of each other's tokens from block to block. The first block of
a stage begins anew: its ranks are told all rows, as the first stage knows all inputs (docs/explanation/predicted.md).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from astra_mpi.engine import Model
from astra_mpi.errors import AstraError
from astra_mpi.layout import Layout
from astra_mpi.partition import displs
from astra_mpi.strategies.token_parallel import TokenParallel
from astra_mpi.strategies.wire import pack_rows, row_bytes, unpack_rows
from astra_mpi.wire.hop import Hop, Received


class StageFailed(AstraError):
    """Another stage has failed, and says why."""


class Handing:
    """Of a rank of `model`, which has the blocks of one stage."""

    def __init__(self, model: Model, hop: Hop, stage: int, kind: str) -> None:
        """kind: of numbers on the way, such as "float16"."""
        self.model, self.hop, self.stage, self.kind = model, hop, stage, kind

    @property
    def _to_all(self) -> bool:
        """Whether the ranks of a stage are told the rows of all tokens."""
        strategy = self.model.strategy
        return isinstance(strategy, TokenParallel) and strategy.begins_with_all and strategy.sends

    def _hearers(self, layout: Layout) -> range:
        """Places in the next stage of those who hear what this rank says."""
        if not self._to_all:
            return range(layout.rank, layout.rank + 1)
        return range(layout.rank if layout.forward else 0, layout.size)

    def _heard(self, layout: Layout) -> range:
        """Places in the stage before of those whom this rank hears."""
        if not self._to_all:
            return range(layout.rank, layout.rank + 1)
        return range(layout.rank + 1 if layout.forward else layout.size)

    def send(self, rows: np.ndarray, layout: Layout) -> None:
        """Rows (n, D) after this stage's blocks and, if the next one asks for it, what entered the first block."""
        told, strategy = rows, self.model.strategy
        if self._to_all:
            assert isinstance(strategy, TokenParallel)
            inputs = strategy.first_inputs
            told = rows if inputs is None else self.model.backend.xp.concatenate([rows, inputs.astype(rows.dtype)])
        self.hop.send(pack_rows(self.model.backend.fetch(told), self.kind), places=self._hearers(layout))

    def fail(self, layout: Layout) -> None:
        """In place of rows."""
        self.hop.send(np.empty(0, np.uint8), well=False, places=self._hearers(layout))

    def drain(self, layout: Layout) -> list[Received]:
        """Wait for what the stage before this one sends, whatever it is."""
        return [self.hop.receive(place) for place in self._heard(layout)]

    def receive(self, layout: Layout) -> np.ndarray:
        """-> rows (n, D) that are held here; the strategy is told those of all others, if it wants to know them.
        StageFailed if there are none."""
        messages = self.drain(layout)
        self.model.laps.mark("exchange")
        if not all(message.well for message in messages):
            raise StageFailed("a stage before this one has failed")
        by_place = dict(zip(self._heard(layout), (self._unpacked(message.data) for message in messages), strict=True))
        own = by_place[layout.rank]
        if self._to_all:
            self._tell(by_place, layout)
        return self.model.backend.put(np.array(own[: int(self.model.strategy.held.row_offsets[-1])], np.float32))

    def _unpacked(self, data: np.ndarray) -> np.ndarray:
        """(n, D) float32."""
        rows = unpack_rows(data.reshape(-1, row_bytes(self.model.config.d_model, self.kind)), self.kind)
        return np.asarray(rows, np.float32)

    def _tell(self, by_place: dict[int, np.ndarray], layout: Layout) -> None:
        """The strategy what came of all tokens; zeros for those that this rank has nothing to do with."""
        strategy, put = self.model.strategy, self.model.backend.put
        assert isinstance(strategy, TokenParallel)
        shape = int(layout.lengths.sum()), self.model.config.d_model
        rows, inputs, ends = np.zeros(shape, np.float32), np.zeros(shape, np.float32), displs(layout.token_counts)
        has_inputs = False
        for place, told in by_place.items():
            there = replace(layout, rank=place)
            n_rows, into = int(there.row_offsets[-1]), layout.everything_places[ends[place] : ends[place + 1]]
            rows[into] = there.content(told[:n_rows])
            if len(told) > n_rows:
                inputs[into], has_inputs = told[n_rows:], True
        strategy.begin_with(put(rows), put(inputs) if has_inputs else None)
