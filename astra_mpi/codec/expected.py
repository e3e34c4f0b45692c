"""Far keys and values from predicted states: what is expected of a token is projected while its codes travel."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.tables import FarSum, Projected, Projection
from astra_mpi.device.memory import Memory
from astra_mpi.device.scratch import Scratch
from astra_mpi.device.weights import product
from astra_mpi.device.xp import module_of


class Expected(Projected):
    """[K | V] of states: their product with the weights before the codes are there, and rows of projected tables after.

    Without tables ("gemm"), all is done when the codes are there.
    """

    def __init__(self, codec: BlockCodec, projection: Projection, stored: Projection | None) -> None:
        """stored: with weights to make tables from; None: without tables."""
        super().__init__(codec, projection)
        self.weight, self.bias = projection.weight, projection.bias
        self.scratch = projection.scratch or Scratch()
        self.sums = None if stored is None else FarSum(codec, stored.on_host()._replace(key_norm=None))

    def round_to(self, dtype: type) -> None:
        if self.sums is not None:
            self.sums.round_to(dtype)

    def halve(self) -> None:
        if self.sums is not None:
            self.sums.halve()

    def move(self, memory: Memory) -> None:
        if self.sums is not None:
            self.sums.move(memory)

    def before(self, state: np.ndarray, kernels: ModuleType) -> np.ndarray | None:
        """Of predicted states (m, D), what does not wait for their codes, (m, 2 d_kv)."""
        return None if self.sums is None else self._projected(state, kernels)

    def after(
        self,
        state: np.ndarray,
        expected: np.ndarray | None,
        codes: np.ndarray,
        came: np.ndarray | None,
        kernels: ModuleType,
    ) -> np.ndarray:
        """states (m, D) with what their codes (m, C) added -> [K | V] (m, 2 d_kv), in `expected` if `before` gave it.

        came (m,) float32: 1 where there are codes, 0 where there are none; None: all are there.
        """
        if expected is None or self.sums is None:
            expected = self._projected(state, kernels)
            expected += self.bias
        else:
            expected += kernels.table_sum(codes, self.sums.tables, came, self.sums.bias)
        return self.normed(expected, kernels)

    def unmoved(self, state: np.ndarray, expected: np.ndarray | None, kernels: ModuleType) -> np.ndarray:
        """predicted states (m, D) -> their [K | V] (m, 2 d_kv), a new array; expected: of `before`, which remains."""
        kv = self._projected(state, kernels) if expected is None else expected.copy()
        kv += self.bias
        return self.normed(kv, kernels)

    def _projected(self, state: np.ndarray, kernels: ModuleType) -> np.ndarray:
        x = state.astype(self.bias.dtype, copy=False)
        out = module_of(x).empty((len(x), self.weight.shape[1]), x.dtype)
        return product(x, self.weight, out, kernels, self.scratch)
