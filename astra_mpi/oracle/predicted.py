"""Codes of what a prediction misses, in the serial oracle: a token's state as its owner has it, and as receivers do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from astra_mpi.oracle.far import Array, Quantised
from astra_mpi.oracle.narrow import EXACT, Rounding


class Predicted(Quantised):
    """Far tokens as their states: exact at first, then predicted from the state before, and moved by their codes.

    missing: per block (P, P), what the rank of a row did not get of the rank of a column; its states of those tokens
    remain as predicted, and every rank has states of its own. Without it one state of a token stands for all ranks'.
    late: in blocks whose codes have bits and are not awaited, tokens see far ones as predicted; only the last `n_new`
    see what codes made of them. If there are none of these, the last block sends nothing, unless it is awaited. begins:
    blocks in which far tokens are exact, for ranks were told all rows: the first, and that of every stage, in which
    codes then begin anew.
    """

    def __init__(
        self,
        owner: Array,
        codec: Any,
        given: Sequence[ArrayLike] | None,
        missing: Sequence[Array] | None,
        size: int,
        late: bool = False,
        n_new: int = 0,
        begins: Sequence[int] = (0,),
        rounding: Rounding = EXACT,
    ) -> None:
        super().__init__(owner, codec, given, missing, None, first=1)
        self.begins, self.ends = set(begins), {*(i - 1 for i in begins), len(codec.blocks) - 1}
        self.rounding = rounding
        self.n_views = 1 if missing is None else size
        self.late, self.n_new = late, n_new if late else 0
        self.owner = np.tile(owner, self.n_views * (1 + (self.n_new > 0)))
        self.bias = np.zeros(len(self.owner))
        self.heard = self.judged = np.ones(len(owner), bool)

    def visible(self, i: int, rank: Array) -> Array:
        """A rank sees what is not its own through its own states."""
        away = super(Quantised, self).visible(i, rank)
        columns = np.arange(len(self.owner)) // self.n_tokens
        if self.n_new:  # all as predicted, then all as codes made them
            new = np.arange(len(rank)) >= len(rank) - self.n_new
            away = away & (new[:, None] == (columns >= self.n_views)[None, :])
        if self.missing is None:
            return away
        return away & ((columns % self.n_views)[None, :] == rank[:, None])

    def __call__(self, i: int, *parts: Array) -> list[Array]:
        (rows,) = parts  # (T, D)
        if i == 0:
            self.inputs = _with_those_before(rows, self.codec.config.inputs)
        if i in self.begins:
            self.sent, self.states = rows.copy(), np.tile(rows, (self.n_views, 1, 1))
            return [np.resize(self.states, (len(self.owner), rows.shape[1]))]
        expected, self.states = self._expected(i, self.sent), self._expected(i, self.states)
        has_bits, awaited = self.codec.blocks[i].bits_per_token > 0, i in self.codec.config.awaited
        as_expected, is_late = self.states, self.late and has_bits and not awaited
        if is_late and not self.n_new and i in self.ends:
            return [as_expected.reshape(-1, rows.shape[1])]
        (moved,) = self.approximated(i, [rows - expected], rows)
        self.sent = expected + moved
        came = np.ones((self.n_views, self.n_tokens), bool)
        if self.missing is not None:
            came = ~np.asarray(self.missing[i])[:, self.token_owner]
        self.states = self.states + came[:, :, None] * moved
        seen = [as_expected if is_late else self.states, self.states][: 1 + (self.n_new > 0)]
        return [np.concatenate(seen).reshape(-1, rows.shape[1])]

    def _expected(self, i: int, state: Array) -> Array:
        """What block i expects of states (.., D)."""
        predictor = self.codec.blocks[i].predictor
        inputs = np.broadcast_to(self.inputs, (*state.shape[:-1], self.inputs.shape[-1]))
        change = np.concatenate([state, inputs], axis=-1)
        for factor in predictor.factors:
            change = self.rounding.of_states(change, factor)
        return predictor.keep * state + change + predictor.bias.astype(np.float64)


def _with_those_before(rows: Array, n: int) -> Array:
    """Tokens (T, D) of a sequence -> (T, n D): each, and the n - 1 before it, zeros before the first."""
    found = np.zeros((len(rows), n, rows.shape[1]))
    for t in range(len(rows)):
        for k in range(min(n, t + 1)):
            found[t, k] = rows[t - k]
    return found.reshape(len(rows), n * rows.shape[1])
