"""What is asked of every weight format, as most of them answer it. Their products need no kernel of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Self

import numpy as np

from astra_mpi.device.scratch import Scratch

#: numbers of a tile: 16 MiB of float32
_TILE = 1 << 22
#: numbers narrowed at a time: 1 MiB of float32, so that every pass over them finds them in the cache
STEP = 1 << 18


@dataclass(frozen=True, eq=False)
class Narrow:
    """A matrix (m, n) in a narrow type. A format adds `narrow_numbers` and `wide_numbers`, or more."""

    #: its name in commands, reports and files
    dtype: ClassVar[str]
    #: of `values`, in memory and on disk
    number: ClassVar[np.dtype[Any]]
    #: whether files say its name in the attribute `dtype`: where `number` alone does not tell
    tagged: ClassVar[bool] = False
    #: per weight
    bits: ClassVar[float]
    #: types of products that multiply it as it is stored; for others it is packed (`device/packed.py`)
    as_stored: ClassVar[tuple[str, ...]] = ()
    #: only linear layers and word embeddings are stored in it, other matrices stay float32
    layers_only: ClassVar[bool] = False

    values: np.ndarray  # (m, n) of `number`, C-contiguous
    scale: np.ndarray | None = None  # float32 factors: (1, n) of columns or (m, 1) of rows; None: 1

    @classmethod
    def narrow_numbers(cls, array: np.ndarray) -> np.ndarray:
        """float32 -> `number`, rounded; what exceeds the type becomes infinite or NaN."""
        raise NotImplementedError

    @classmethod
    def wide_numbers(cls, values: np.ndarray) -> np.ndarray:
        """Stored numbers without their scale -> float32, a new array."""
        raise NotImplementedError

    @classmethod
    def holds(cls, name: str, shape: tuple[int, ...]) -> bool:
        """Whether weight `name` is stored in this format; vectors never are."""
        return len(shape) > 1 and (not cls.layers_only or is_layer(name, shape) or name == "embed.word")

    @classmethod
    def instead(cls, name: str, shape: tuple[int, ...]) -> str:
        """The format of a weight that this one does not hold."""
        return "float32"

    @classmethod
    def stored_shape(cls, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of `values` of weight `name`."""
        return shape

    @classmethod
    def scale_shape(cls, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Shape of `scale` of weight `name`; None if it has none."""
        return None

    @classmethod
    def scale_for(cls, name: str, array: np.ndarray) -> np.ndarray | None:
        """The scale with which weight `name` is stored."""
        return None

    @classmethod
    def made(cls, name: str, array: np.ndarray) -> Self:
        """Weight `name` (float32), rounded."""
        values, scale = np.empty(array.shape, cls.number), cls.scale_for(name, array)
        step = max(1, STEP // array.shape[1])
        for first in range(0, len(array), step):  # temporaries stay small beside the matrix
            rows = slice(first, first + step)
            part = array[rows]
            if scale is not None:
                part = part / (scale if len(scale) == 1 else scale[rows])
            values[rows] = cls.narrow_numbers(part)
        return cls(values, scale)

    @classmethod
    def from_stored(cls, name: str, shape: tuple[int, ...], values: np.ndarray, scale: np.ndarray | None) -> Any:
        """Weight `name` of `shape` from what lies in a file: this matrix, or a float32 array."""
        return cls(values, scale)

    @classmethod
    def finite(cls, values: np.ndarray) -> bool:
        """Whether stored numbers, of any shape, are neither infinite nor NaN."""
        return True

    @classmethod
    def rounding(cls, name: str, before: np.ndarray) -> np.ndarray:
        """The largest differences that storing `before` explains, of a shape that broadcasts to its own."""
        raise NotImplementedError

    @classmethod
    def rounded_tensor(cls, weight: Any, inputs: tuple[int, ...]) -> Any:
        """A float32 tensor of PyTorch as this format stores it; `inputs`: its axes that are not a layer's outputs."""
        axes = [axis for axis in range(weight.ndim) if axis not in inputs]
        turned = weight.permute(*inputs, *axes)
        array = turned.reshape(-1, turned.shape[-1]).numpy()
        wide = np.asarray(cls.made("layer.weight", np.ascontiguousarray(array)))
        back = weight.new_tensor(wide).reshape(turned.shape)
        return back.permute(*np.argsort([*inputs, *axes]).tolist()).contiguous()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Rows, as an array's, in float32."""
        wide = self.wide_numbers(self.values[rows])
        if self.scale is not None:
            wide *= self.scale[rows] if len(self.scale) == len(self) else self.scale[0]
        return wide

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)

    def part(self, rows: slice, columns: slice) -> Self | np.ndarray:
        """A copy of some rows and columns, float32 where the format cannot hold them."""
        scale = self.scale
        if scale is not None:
            scale = scale[:, columns] if len(scale) == 1 else scale[rows]
        return type(self)(np.ascontiguousarray(self.values[rows, columns]), None if scale is None else scale.copy())

    def product(self, x: np.ndarray, out: np.ndarray, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
        """out (k, n) = x (k, m) @ this."""
        m, n = self.shape
        for columns in self.tiles(n, m, 16):
            tile = self.widen(columns, kernels, scratch("tile", m, columns.stop - columns.start))
            matmul(x, tile, out[:, columns], kernels)
        return out

    def product_transposed(self, x: np.ndarray, out: np.ndarray, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
        """out (k, m) = x (k, n) @ this transposed."""
        m, n = self.shape
        for rows in self.tiles(m, n, 1):
            matmul(x, self[rows].T, out[:, rows], kernels)
        return out

    def widen(self, columns: slice, kernels: ModuleType, tile: np.ndarray) -> np.ndarray:
        """Some columns in float32, in `tile`, which is returned."""
        tile[...] = self.part(slice(None), columns)[:]
        return tile

    @staticmethod
    def tiles(n: int, others: int, multiple: int) -> Iterator[slice]:
        """Slices of n columns, or rows, of `others` numbers each; their number a multiple of this."""
        width = min(n, max(16, _TILE // max(1, others) // multiple * multiple))
        return (slice(first, min(n, first + width)) for first in range(0, n, max(1, width)))


def matmul(x: np.ndarray, weight: np.ndarray, out: np.ndarray, kernels: ModuleType) -> None:
    """out (m, n) = x (m, k) @ weight (k, n), shared by threads where kernels have some."""
    if hasattr(kernels, "matmul"):
        kernels.matmul(x, weight, out)
    else:
        np.matmul(x, weight, out=out)


def is_layer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is that of a linear layer, (in, out)."""
    return name.endswith(".weight") and len(shape) == 2
