"""Codes whose blocks have maps to them from earlier codes, in the serial oracle: what stands in for codes that a block
has not, or not yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from astra_mpi.oracle.far import Array, Quantised


class Carried(Quantised):
    """Far tokens as their codes in blocks that have some, and in the others as the map from the last codes before, or
    from exact rows, says.

    late: as the map says in all blocks but awaited ones; only the last `n_new` tokens see what codes made of far ones.
    If there are none of these, the last block sends nothing, unless it is awaited. begins: blocks in which far tokens
    are exact, as in `Predicted`.
    """

    def __init__(
        self,
        owner: Array,
        codec: Any,
        given: Sequence[ArrayLike] | None,
        missing: Sequence[Array] | None,
        stand_in: Sequence[Array] | None,
        late: bool = False,
        n_new: int = 0,
        begins: Sequence[int] = (0,),
    ) -> None:
        super().__init__(owner, codec, given, missing, stand_in, first=1)
        self.begins, self.ends = set(begins), {*(i - 1 for i in begins), len(codec.blocks) - 1}
        self.late, self.n_new = late, n_new if late else 0
        self.n_rows = len(self.owner)  # of each kind: as the map says, then as codes say
        self.owner = np.tile(self.owner, 1 + (self.n_new > 0))
        self.bias = np.zeros(len(self.owner))
        self.source = 0  # the block with the last codes, or in which all was exact

    def _has_codes(self, i: int) -> bool:
        last = self._is_late(i) and not self.n_new and i in self.ends
        return i not in self.begins and self.codec.blocks[i].bits_per_token > 0 and not last

    def _is_late(self, i: int) -> bool:
        return self.late and i not in self.codec.config.awaited

    def visible(self, i: int, rank: Array) -> Array:
        own = i if self._has_codes(i) else self.source
        away = self._of_message(self.source if self._is_late(i) else own, rank)[:, : self.n_rows]
        if not self.n_new:
            return away
        new = (np.arange(len(rank)) >= len(rank) - self.n_new)[:, None]
        by_codes = self._of_message(own, rank)[:, self.n_rows :]
        return np.concatenate([away & ~new, by_codes & new], axis=1)

    def _of_message(self, i: int, rank: Array) -> Array:
        """(rows, m): what is seen of far rows that come from the codes of block i."""
        away = super(Quantised, self).visible(i, rank)
        if self.missing is None:
            return away
        gone = np.asarray(self.missing[i])[rank[:, None], self.owner[None, :]] & (i not in self.begins)
        stands_in = np.arange(len(self.owner)) % self.n_rows >= self.n_tokens
        return away & (gone == stands_in)

    def __call__(self, i: int, *parts: Array) -> list[Array]:
        (rows,) = parts  # (T, D)
        if i in self.begins:
            self.source = i
            self.known = np.resize(rows, (self.n_rows, rows.shape[1]))
            return [np.resize(rows, (len(self.owner), rows.shape[1]))]
        mapped = self._mapped(i)
        by_codes = mapped
        if self._has_codes(i):
            (by_codes,) = super().__call__(i, rows)
            self.known, self.source = by_codes, i
        seen = [mapped if self._is_late(i) else by_codes, by_codes]
        return [np.concatenate(seen[: 1 + (self.n_new > 0)])]

    def _mapped(self, i: int) -> Array:
        """What block i makes of the last codes, (n_rows, D)."""
        predictor, change = self.codec.blocks[i].predictor, self.known
        for factor in predictor.factors:
            change = change @ factor.astype(np.float64)
        return predictor.keep * self.known + change + predictor.bias.astype(np.float64)
