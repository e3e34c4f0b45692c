"""Keys and values of a pass that goes through a rank's blocks piece by piece: those of the pieces so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from astra_mpi.config import ModelConfig
from astra_mpi.device.xp import beside, module_of, take
from astra_mpi.partition import displs, ranges


class Before(NamedTuple):
    """What the rows of a piece attend to beside each other."""

    kv: np.ndarray  # (m, 2 d_kv), keys turned
    offsets: np.ndarray  # (B + 1,) where each sequence's begin
    places: np.ndarray | None  # (m,) positions, where they matter


class Earlier:
    """Of sequences whose rows are all on this rank. Their pieces come in order of position."""

    def __init__(self, config: ModelConfig, n_blocks: int, lengths: np.ndarray) -> None:
        """lengths (B,): tokens of each sequence."""
        self._width, self._firsts = 2 * config.d_kv, displs(lengths)
        self._kv: list[Any] = [None] * n_blocks  # (sum of lengths, 2 d_kv) each, sequence after sequence
        #: (sum of lengths,) positions of the rows so far, where windows or biases look at them
        self.places: np.ndarray | None = None

    def begin(self, starts: np.ndarray, ends: np.ndarray) -> None:
        """The next piece has the tokens starts .. ends - 1 of each sequence, (B,) each."""
        firsts = self._firsts[:-1]
        self._rows, self._before = ranges(firsts + starts, ends - starts), ranges(firsts, starts)
        self._offsets = displs(starts)
        self.is_last = bool((firsts + ends == self._firsts[1:]).all())

    def place(self, places: np.ndarray | None) -> None:
        """Positions (n,) of the piece's rows, if they matter."""
        if places is not None:
            if self.places is None:
                self.places = np.zeros(int(self._firsts[-1]), places.dtype)
            self.places[self._rows] = places

    def before(self, i: int) -> Before | None:
        """Of block i; None: the piece is the first."""
        if not len(self._before):
            return None
        kept = self._kv[i]
        one = len(self._offsets) == 2
        places = None if self.places is None else beside(kept, self.places[self._before])
        return Before(kept[: len(self._before)] if one else take(kept, self._before), self._offsets, places)

    def keep(self, i: int, kv: np.ndarray) -> np.ndarray:
        """The piece's rows kv (n, 2 d_kv) of block i -> (sum of lengths, 2 d_kv) of all so far."""
        if self._kv[i] is None:
            self._kv[i] = module_of(kv).empty((int(self._firsts[-1]), self._width), kv.dtype)
        self._kv[i][beside(kv, self._rows)] = kv
        return self._kv[i]
