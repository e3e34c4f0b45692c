"""What a rank holds of the tokens of a pass where codes stand for what a prediction misses.

Own tokens have the state that the others hold of them, so that what is sent next is what these cannot know. All of it
is computed in the same way on every rank: equal inputs and equal codes give equal states, bit by bit.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from astra_mpi.codec.codec import Codec
from astra_mpi.codec.expected import Expected
from astra_mpi.codec.predictor import inputs_before, known
from astra_mpi.device.xp import module_of, take
from astra_mpi.strategies.coded.carried import Leaps


class States:
    """Attention inputs as receivers have them, float32: of this rank's content tokens and of the far ones."""

    def __init__(self, codec: Codec, tables: list[Expected], leaps: Leaps, kernels: ModuleType) -> None:
        self.codec, self.tables, self.leaps, self.kernels = codec, tables, leaps, kernels
        for predictor, table in zip(leaps.predictors, tables, strict=True):
            if predictor is not None:
                predictor.make_ready(table.scratch.xp, kernels)
        #: (T, D) what entered the first block of the whole model, where it is predicted from
        self.first: np.ndarray | None = None

    def begin(
        self,
        every: np.ndarray,
        lengths: np.ndarray,
        own: np.ndarray,
        far: np.ndarray,
        first: np.ndarray | None = None,
    ) -> None:
        """Block 0, in which all are exact.

        every (T, D) float32: all content tokens, sequences of lengths (B,) one after another. own (n_r,): where own
        tokens are, none where nobody hears of them; far (m,): where far ones are. first (T, D): what entered the first
        block of the whole model, if that is another.
        """
        self.own, self.far = take(every, own), take(every, far)
        self.first = None
        if self.codec.config.inputs:
            self.first = every.copy() if first is None else first
        inputs = None if self.first is None else inputs_before(self.first, lengths, self.codec.config.inputs)
        self._own_inputs = None if inputs is None else take(inputs, own)
        self._far_inputs = None if inputs is None else take(inputs, far)
        self._own_block = self._far_block = 0
        self._expected: np.ndarray | None = None

    def codes(self, i: int, normed: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
        """Codes (n_r, C) of the attention inputs (n_r, D) of own tokens in block i, which their states then follow.

        near (n_r,): which tokens have all codes; None: all.
        """
        block = self.codec.blocks[i]
        if i in self.leaps.rows:
            return module_of(normed).zeros((len(normed), block.n_codes), np.uint8)
        self.expect_own(i)
        codes = block.encode(normed - self.own, self.kernels, near)
        self.own += block.decode(codes, self.kernels)
        return codes

    def expect_own(self, i: int) -> None:
        """What block i will say of own tokens; at any time after `codes` of the block before it."""
        if self._own_block < i < len(self.codec.blocks) and i not in self.leaps.rows:
            self.own, self._own_block = self._predicted(i, self.own, self._own_inputs), i

    def expect_far(self, i: int, projects: bool = True) -> None:
        """What block i will say of far tokens and, if that is asked for, their keys and values as far as these do not
        wait for codes."""
        if self._far_block >= i:
            return
        if i in self.leaps.rows:
            x = known(self.far, self._far_inputs).astype(self.tables[i].bias.dtype, copy=False)
            self._expected = self.leaps.rows[i](x, self.kernels)
        else:
            self.far = self._predicted(i, self.far, self._far_inputs)
            self._expected = self.tables[i].before(self.far, self.kernels) if projects else None
        self._far_block = i

    def far_kv(self, i: int, codes: np.ndarray, came: np.ndarray | None) -> np.ndarray:
        """[K | V] (m, 2 d_kv) of far tokens in block i, whose states follow their codes (m, C).

        came (m,) float32: 1 where codes came, 0 where none did and the state remains as predicted; None: all came.
        """
        self.expect_far(i)
        kv, self._expected = self._expected, None
        if i in self.leaps.rows:
            assert kv is not None
            return kv
        self.move_far(i, codes, came)
        return self.tables[i].after(self.far, kv, codes, came, self.kernels)

    def move_far(self, i: int, codes: np.ndarray, came: np.ndarray | None) -> None:
        """States of far tokens follow their codes (m, C) of block i, as `far_kv` has them."""
        added = self.codec.blocks[i].decode(codes, self.kernels)
        self.far += added if came is None else added * came[:, None]

    def expected_kv(self, i: int, followed: bool) -> np.ndarray:
        """[K | V] (m, 2 d_kv) of far tokens as block i expects them, before its codes. followed: by `far_kv`."""
        self.expect_far(i, followed)
        return self.tables[i].unmoved(self.far, self._expected, self.kernels)

    def _predicted(self, i: int, state: np.ndarray, inputs: np.ndarray | None) -> np.ndarray:
        predictor = self.leaps.predictors[i]
        assert predictor is not None
        return predictor.predict(state, inputs, self.kernels)
