"""Forward passes that take turns on a rank: one computes while the exchange of another travels.

A batch is halved between two sequences, and each half is a pass of its own. Passes give way in the same order on every
rank, so that their exchanges start in the same order everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.strategies.base import Steps, Strategy


class Part(NamedTuple):
    """Neighbouring sequences of a batch, which a forward pass takes."""

    batch: Batch
    layout: Layout
    sequences: slice


class Taken(NamedTuple):
    """A part, and the strategy that takes it."""

    part: Part
    strategy: Strategy


def halves(whole: Part) -> list[Part]:
    """A part of two sequences or more in two."""
    cut = whole.layout.halves
    return [Part(whole.batch.part(own, whole.layout.n_class), layout, own) for own, layout in cut]


def formula_bytes(taken: Sequence[Taken], whole: Strategy, layout: Layout) -> list[int]:
    """Per rank, `Strategy.formula_bytes` of a pass over `layout` or, where its halves were taken, of these: messages of
    codes are whole bytes."""
    every = [own.formula_bytes(part.layout) for part, own in taken] if len(taken) > 1 else [whole.formula_bytes(layout)]
    return [sum(of_rank) for of_rank in zip(*every, strict=True)]


def distinct_keys(taken: Sequence[Taken]) -> float | None:
    """Collective: `Strategy.distinct_keys` of a pass, a mean over its sequences."""
    found = [strategy.distinct_keys() for _, strategy in taken]
    known = [keys for keys in found if keys is not None]
    if len(found) < 2 or not known:
        return found[0]
    return float(np.average(known, weights=[len(part.layout.counts) for part, _ in taken]))


class Pass:
    """A forward pass on this rank, which gives way after each exchange that it has started."""

    def __init__(self, strategy: Strategy, steps: Steps) -> None:
        self.strategy, self.steps = strategy, steps
        self.rows = np.empty((0, 0), np.float32)  # (n, D) when it has ended
        self.failure: Exception | None = None
        self._turn = 0

    def go_on(self) -> bool:
        """Until it gives way; False: it has ended. What fails is kept, and the other ranks get what they wait for."""
        try:
            next(self.steps)
        except StopIteration as ended:
            self.rows = ended.value
            return False
        except Exception as exc:
            if self.failure is not None:
                raise
            self.failure, self.steps = exc, self.strategy.abandoning(self._turn)
            return self.go_on()
        self._turn += 1
        return True


def in_turns(passes: Sequence[Pass], switch: Callable[[int], None]) -> None:
    """All passes to their ends. switch: called with the number of the pass that goes on."""
    under_way = list(range(len(passes)))
    while under_way:
        for k in under_way.copy():
            switch(k)
            if not passes[k].go_on():
                under_way.remove(k)
    switch(0)
