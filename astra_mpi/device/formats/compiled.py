"""Formats whose numbers the kernels read as they are: `widen`, `vecmat` and `matvec`."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from astra_mpi.device.formats.narrow import Narrow, matmul
from astra_mpi.device.scratch import Scratch

#: up to so many rows, each reads the narrow matrix by itself
_FEW_ROWS = 8


class Compiled(Narrow):
    """A product with a few rows reads the narrow matrix; one with many widens tiles, which the rows pay back."""

    def product(self, x: np.ndarray, out: np.ndarray, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
        if len(x) > _FEW_ROWS:
            return super().product(x, out, kernels, scratch)
        scale = None if self.scale is None else self.scale[0]
        for row, result in zip(np.ascontiguousarray(x), out, strict=True):
            kernels.vecmat(row, self.values, scale, result)
        return out

    def product_transposed(self, x: np.ndarray, out: np.ndarray, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
        m, n = self.shape
        scale = None if self.scale is None else self.scale[:, 0]
        if len(x) <= _FEW_ROWS:
            for row, result in zip(np.ascontiguousarray(x), out, strict=True):
                kernels.matvec(self.values, scale, row, result)
            return out
        for rows in self.tiles(m, n, 1):
            tile = kernels.widen(self.values[rows], None, 0, scratch("tile", rows.stop - rows.start, n))
            matmul(x, tile.T, out[:, rows], kernels)
        if scale is not None:
            out *= scale
        return out

    def widen(self, columns: slice, kernels: ModuleType, tile: np.ndarray) -> np.ndarray:
        return kernels.widen(self.values, None if self.scale is None else self.scale[0], columns.start, tile)
