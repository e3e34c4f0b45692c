"""Weights as they are stored: float32 as plain arrays, narrower types as `Narrow`, widened where they are used.

A narrow matrix stays narrow in memory. A product with a few rows reads it as it is; one with many rows widens a tile of
columns into a scratch buffer before BLAS multiplies by it, which the rows pay back.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.device.scratch import Scratch
from astra_mpi.device.xp import module_of

#: how each type lies in memory and on disk; bfloat16 is the upper half of a float32
STORAGE: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("f4"),
    "float16": np.dtype("f2"),
    "bfloat16": np.dtype("u2"),
    "int8": np.dtype("i1"),
}
#: numbers of a tile: 16 MiB of float32
_TILE = 1 << 22
#: numbers narrowed at a time: 1 MiB of float32, so that every pass over them finds them in the cache
_STEP = 1 << 18
#: up to so many rows, each reads the narrow matrix by itself
_FEW_ROWS = 8


@dataclass(frozen=True, eq=False)
class Narrow:
    """A matrix (m, n) in a narrow type. int8: one factor per output of the layer that it is."""

    values: np.ndarray  # (m, n) float16, uint16 (bfloat16) or int8, C-contiguous
    scale: np.ndarray | None = None  # int8: float32, (1, n) for linear layers, (m, 1) for word embeddings

    @property
    def dtype(self) -> str:
        return next(name for name, dtype in STORAGE.items() if dtype == self.values.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def size(self) -> int:
        return self.values.size

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Rows, as an array's, in float32."""
        wide = widened(self.values[rows])
        if self.scale is not None:
            wide *= self.scale[rows] if len(self.scale) == len(self) else self.scale[0]
        return wide

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)

    def part(self, rows: slice, columns: slice) -> Narrow:
        """A copy of some rows and columns."""
        scale = self.scale
        if scale is not None:
            scale = scale[:, columns] if len(scale) == 1 else scale[rows]
        return Narrow(np.ascontiguousarray(self.values[rows, columns]), None if scale is None else scale.copy())

    def product(self, x: np.ndarray, out: np.ndarray, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
        """out (k, n) = x (k, m) @ this."""
        m, n = self.shape
        scale = None if self.scale is None else self.scale[0]
        if len(x) <= _FEW_ROWS:
            for row, result in zip(np.ascontiguousarray(x), out, strict=True):
                kernels.vecmat(row, self.values, scale, result)
            return out
        width = min(n, max(16, _TILE // max(1, m) // 16 * 16))
        for first in range(0, n, width):
            columns = slice(first, min(n, first + width))
            tile = kernels.widen(self.values, scale, first, scratch("tile", m, columns.stop - first))
            np.matmul(x, tile, out=out[:, columns])
        return out

    def product_transposed(self, x: np.ndarray, out: np.ndarray, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
        """out (k, m) = x (k, n) @ this transposed."""
        m, n = self.shape
        scale = None if self.scale is None else self.scale[:, 0]
        if len(x) <= _FEW_ROWS:
            for row, result in zip(np.ascontiguousarray(x), out, strict=True):
                kernels.matvec(self.values, scale, row, result)
            return out
        height = min(m, max(16, _TILE // n))
        for first in range(0, m, height):
            rows = slice(first, min(m, first + height))
            tile = kernels.widen(self.values[rows], None, 0, scratch("tile", rows.stop - first, n))
            np.matmul(x, tile.T, out=out[:, rows])
        if scale is not None:
            out *= scale
        return out


class SideBySide:
    """Matrices of as many rows, (m, n1), (m, n2), .., as one (m, n1 + n2 + ..), none of them copied."""

    def __init__(self, *matrices: np.ndarray | Narrow) -> None:
        self.matrices = matrices
        ends = np.cumsum([matrix.shape[1] for matrix in matrices])
        self.shape = len(matrices[0]), int(ends[-1])
        self.columns = [slice(int(end) - matrix.shape[1], int(end)) for matrix, end in zip(matrices, ends, strict=True)]

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrix in self.matrices)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate([np.asarray(matrix, dtype or np.float32) for matrix in self.matrices], axis=1)

    def product(self, x: np.ndarray, out: np.ndarray, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
        """out (k, n) = x (k, m) @ this."""
        for matrix, columns in zip(self.matrices, self.columns, strict=True):
            product(x, matrix, out[:, columns], kernels, scratch)
        return out


Matrix = np.ndarray | Narrow | SideBySide
#: canonical name -> float32 array, or a narrow matrix
Weights = Mapping[str, Any]


def product(x: np.ndarray, weight: Matrix, out: np.ndarray, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
    """out (k, n) = x (k, m) @ weight (m, n); out may be row-strided."""
    if isinstance(weight, Narrow | SideBySide):
        return weight.product(x, out, kernels, scratch)
    return module_of(x).matmul(x, weight, out=out)


def product_transposed(x: np.ndarray, weight: np.ndarray | Narrow, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
    """x (k, n) @ weight (m, n) transposed -> (k, m), a new array."""
    if isinstance(weight, Narrow):
        return weight.product_transposed(x, np.empty((len(x), len(weight)), np.float32), kernels, scratch)
    return x @ weight.T


def part(weight: np.ndarray | Narrow, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray | Narrow:
    """A copy of some rows and columns of a matrix, in its type."""
    if isinstance(weight, Narrow):
        return weight.part(rows, columns)
    return module_of(weight).array(weight[rows, columns], order="C")


def mapped_file(weight: np.ndarray | Narrow) -> mmap.mmap | None:
    """The file mapping that a matrix lies in, if it does."""
    base: Any = weight.values if isinstance(weight, Narrow) else weight
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def forget(weight: np.ndarray | Narrow) -> None:
    """Give the memory of a mapped matrix back to the system, which reads it again should it be used again."""
    mapping = mapped_file(weight)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def widened(values: np.ndarray) -> np.ndarray:
    """Stored numbers without their scale, as float32 in a new array."""
    if values.dtype == STORAGE["bfloat16"]:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


class Made(Mapping[str, Any]):
    """Weights that are made, or read, when they are asked for, so that not all are in memory at once."""

    def __init__(self, names: Iterable[str], make: Callable[[str], np.ndarray | Narrow]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> np.ndarray | Narrow:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def narrowed(name: str, array: np.ndarray, dtype: str) -> np.ndarray | Narrow:
    """Weight `name` (float32) as `dtype` is stored.

    Vectors stay float32, and with int8 so does all that is no linear layer or word embedding. Numbers beyond float16
    become infinite.
    """
    linear = name.endswith(".weight") and array.ndim == 2
    if dtype == "float32" or array.ndim < 2 or (dtype == "int8" and not linear and name != "embed.word"):
        return np.ascontiguousarray(array, np.float32)
    values = np.empty(array.shape, STORAGE[dtype])
    scale = None
    if dtype == "int8":
        axis = 0 if linear else 1
        scale = np.maximum(array.max(axis=axis, keepdims=True), -array.min(axis=axis, keepdims=True)) / np.float32(127)
        scale[scale < np.finfo(np.float32).tiny] = 1  # rows of zeros, or as good as that
    step = max(1, _STEP // array.shape[1])
    for first in range(0, len(array), step):  # temporaries stay small beside the matrix
        rows = slice(first, first + step)
        if scale is not None:
            values[rows] = np.rint(array[rows] / (scale if len(scale) == 1 else scale[rows]))
        elif dtype == "bfloat16":
            values[rows] = _upper_half(array[rows])
        else:
            with np.errstate(over="ignore"):
                values[rows] = array[rows]
    return Narrow(values, scale)


def _upper_half(array: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 as uint16, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
