"""Positions of tokens in the order of rows: by what they are turned, and where windows and biases find them."""

from __future__ import annotations

import numpy as np

from astra_mpi.config import ModelConfig
from astra_mpi.kernels.near import Near
from astra_mpi.models.batch import Batch
from astra_mpi.models.block import Block
from astra_mpi.models.family import Family, Turns


class Positions:
    """What a family says of the packed tokens of a batch."""

    def __init__(self, family: Family, batch: Batch) -> None:
        self.turns: Turns | None = family.turns(batch)
        self.places = family.places(batch)
        self.relative = family.relative


class PlacedRows:
    """The same of one set of rows, on the device."""

    def __init__(self, positions: Positions | None, index: np.ndarray, blocks: list[Block]) -> None:
        """index (n,): where the rows lie in the packed batch."""
        turns, places = (None, None) if positions is None else (positions.turns, positions.places)
        packed = {id(one): one for one in turns or () if one is not None}
        xp = blocks[0].scratch.xp if packed or places is not None else np
        there = {key: xp.asarray(one[index]) for key, one in packed.items()}
        self._turns = None if turns is None else [there.get(id(one)) for one in turns]
        #: (n,) int32 positions, where windows or biases look at them
        self.places: np.ndarray | None = None if places is None else xp.asarray(places[index])

    def turns(self, i: int) -> np.ndarray | None:
        """(n, d_head) of block i, or None where nothing turns."""
        return None if self._turns is None else self._turns[i]


def near(config: ModelConfig, i: int, positions: Positions | None, rows: PlacedRows) -> Near | None:
    """What block i does with the scores of the queries of these rows, or None."""
    relative, window = None if positions is None else positions.relative, config.window(i)
    if not (config.score_cap or window or relative is not None):
        return None
    return Near(config.score_cap, window, relative, rows.places)
