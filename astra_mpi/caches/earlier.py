"""Keys and values of a pass that goes through a rank's blocks piece by piece: those of the pieces so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from astra_mpi.config import ModelConfig
from astra_mpi.device.scratch import Scratch
from astra_mpi.device.xp import beside, module_of, take
from astra_mpi.partition import displs, ranges


class Before(NamedTuple):
    """What the rows of a piece attend to beside each other."""

    kv: np.ndarray  # (m, 2 d_kv), keys turned
    offsets: np.ndarray  # (B + 1,) where each sequence's begin
    places: np.ndarray | None  # (m,) positions, where they matter


class Earlier:
    """Of sequences whose rows are all on this rank. Their pieces come in order of position."""

    def __init__(self, config: ModelConfig, n_blocks: int, lengths: np.ndarray, scratch: Scratch) -> None:
        """lengths (B,): tokens of each sequence. scratch: where keys lie that nobody needs after the pass."""
        self._width, self._firsts, self._scratch = 2 * config.d_kv, displs(lengths), scratch
        self._kv: list[Any] = [None] * n_blocks  # (sum of lengths, 2 d_kv) each, sequence after sequence
        #: (sum of lengths,) positions of the rows so far, where windows or biases look at them
        self.places: np.ndarray | None = None

    def begin(self, starts: np.ndarray, ends: np.ndarray) -> None:
        """The next piece has the tokens starts .. ends - 1 of each sequence, (B,) each."""
        firsts = self._firsts[:-1]
        self._rows, self._before = ranges(firsts + starts, ends - starts), ranges(firsts, starts)
        self._offsets = displs(starts)
        self._only = slice(int(starts[0]), int(ends[0])) if len(starts) == 1 else None  # of the only sequence
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
        places = None if self.places is None else beside(kept, self.places[self._before])
        return Before(take(kept, self._before), self._offsets, places)

    def so_far(self, i: int) -> Before | None:
        """Of block i what `before` gives, and after it the piece itself, which is kept; None: of several sequences."""
        if self._only is None:
            return None
        end = self._only.stop
        places = None if self.places is None else beside(self._kv[i], self.places[:end])
        return Before(self._kv[i][:end], np.array([0, end]), places)

    def keep(self, i: int, kv: np.ndarray, lasting: bool = False) -> np.ndarray:
        """The piece's rows kv (n, 2 d_kv) of block i -> (sum of lengths, 2 d_kv) of all so far, in a buffer that the
        next pass overwrites. lasting: in memory of their own, for decoding copies them and they go."""
        if self._kv[i] is None:
            shape = int(self._firsts[-1]), self._width
            anew = lasting or kv.dtype != self._scratch.dtype
            self._kv[i] = module_of(kv).empty(shape, kv.dtype) if anew else self._scratch(f"earlier {i}", *shape)
        self._kv[i][beside(kv, self._rows) if self._only is None else self._only] = kv
        return self._kv[i]
