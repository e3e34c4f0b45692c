"""Families whose queries and keys are turned by their positions: fields of the config, and turns of a batch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from astra_mpi.config import ModelConfig, optional, require
from astra_mpi.models.batch import Batch
from astra_mpi.models.family import Family, Turns
from astra_mpi.models.rope import Rope


@dataclass(frozen=True)
class RotaryConfig(ModelConfig):
    """`ModelConfig` plus rotary positions, see `Rope`. To be named first among the bases of a family's config."""

    _: KW_ONLY
    rope_theta: float = 10000.0
    rope_type: str = "default"
    rope_factor: float = 1.0
    rope_low_factor: float = 1.0
    rope_high_factor: float = 4.0
    rope_trained_positions: int = 8192
    rope_width: int = optional(0)
    rope_scale: float = optional(1.0)
    rope_ramp: tuple[float, ...] = optional(())
    rope_short: tuple[float, ...] = optional(())
    rope_long: tuple[float, ...] = optional(())
    rope_local_theta: float = optional(0.0)  # of blocks with a window, which nothing slows down; 0: as the others
    unturned: tuple[int, ...] = optional(())  # blocks without positions

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rope.check(self.d_head)
        if self.rope_local_theta:
            Rope(self.rope_local_theta, width=self.rope_width).check(self.d_head)
        known = all(type(i) is int and 0 <= i < self.n_layers for i in self.unturned)
        require(known, f"config: unturned = {list(self.unturned)} are not all blocks, 0..{self.n_layers - 1}")

    @property
    def rope(self) -> Rope:
        """Of most blocks."""
        return Rope(
            self.rope_theta,
            self.rope_type,
            self.rope_factor,
            self.rope_low_factor,
            self.rope_high_factor,
            self.rope_trained_positions,
            self.rope_width,
            self.rope_scale,
            self.rope_ramp,
            self.rope_short,
            self.rope_long,
        )

    def rope_of(self, i: int) -> Rope | None:
        """Of block i; None: nothing turns."""
        if i in self.unturned:
            return None
        if self.rope_local_theta and self.window(i):
            return Rope(self.rope_local_theta, width=self.rope_width)
        return self.rope

    def last_position(self, first: np.ndarray, max_positions: int) -> np.ndarray:
        """Where sequences must end whose new tokens begin at `first` (B,): longrope turns all tokens by other angles as
        soon as a sequence is longer than trained on, and what is kept of a prompt is turned already."""
        if self.rope_type != "longrope":
            return np.full(len(first), max_positions)
        return np.where(first <= self.rope_trained_positions, self.rope_trained_positions, max_positions)


class Rotary(Family):
    """A family with a `RotaryConfig`. To be named first among its bases."""

    config: Any
    _turned: tuple[np.ndarray, np.ndarray, Turns] | None = None  # of the last batch, after its positions and lengths

    def turns(self, batch: Batch) -> Turns:
        assert batch.positions is not None
        last = self._turned
        if last is None or not (np.array_equal(last[0], batch.positions) and np.array_equal(last[1], batch.lengths)):
            self._turned = last = batch.positions, batch.lengths, self._turns(batch.positions, batch.lengths)
        return last[2]

    def _turns(self, positions: np.ndarray, lengths: np.ndarray) -> Turns:
        config = self.config
        distinct, which = self._ropes
        long = _long(positions, lengths + config.n_class, config.rope_trained_positions)
        made = [None, *(rope.turns(positions, config.d_head, long) for rope in distinct)]
        return [made[place] for place in which]

    @cached_property
    def _ropes(self) -> tuple[list[Rope], list[int]]:
        """The distinct ones of all blocks, and for each block which of them it has, from 1; 0: none."""
        ropes = [self.config.rope_of(i) for i in range(self.config.n_layers)]
        distinct = [rope for rope in dict.fromkeys(ropes) if rope is not None]
        return distinct, [0 if rope is None else 1 + distinct.index(rope) for rope in ropes]


def _long(positions: np.ndarray, counts: np.ndarray, trained_positions: int) -> np.ndarray:
    """(N,) whether each packed token belongs to a sequence that goes beyond the positions trained on."""
    ends = np.cumsum(counts)
    filled = counts > 0
    last = np.zeros(len(counts), np.int64)
    last[filled] = positions[ends[filled] - 1]
    return np.repeat(last >= trained_positions, counts)
