"""Weights as products in bfloat16 and int8 take them: packed once at load, in `kernels.cpu.products`' layout."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.device.formats import FORMATS
from astra_mpi.device.formats.narrow import Narrow
from astra_mpi.device.memory import Memory
from astra_mpi.device.scratch import Scratch

#: columns packed at a time, a multiple of a pair of strips: their float32 numbers are in memory meanwhile
_STEP = 512


class Packed:
    """A matrix (k, n), rounded; see `Strips` in kernels/cpu/products/layout.py."""

    def __init__(self, strips: Any, kernels: ModuleType) -> None:
        self.strips, self._kernels = strips, kernels
        self.shape, self.dtype = (strips.k, strips.n), strips.kind

    @property
    def ndim(self) -> int:
        return 2

    @property
    def nbytes(self) -> int:
        return int(self.strips.nbytes)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        wide: np.ndarray = self._kernels.unpack_weights(self.strips)
        return wide.astype(dtype or np.float32, copy=False)

    def product(self, x: np.ndarray, out: np.ndarray, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
        """out (m, n) = x (m, k) @ this; out may be row-strided."""
        return self.layer(x, out)

    def layer(
        self,
        x: np.ndarray,
        out: np.ndarray,
        bias: np.ndarray | None = None,
        activation: str = "",
        gate: Packed | None = None,
        gate_bias: np.ndarray | None = None,
        add: bool = False,
    ) -> np.ndarray:
        """out = act(x @ this + bias), or (x @ this + bias) * act(x @ gate + gate_bias); added to out if `add`."""
        gates = None if gate is None else gate.strips
        done: np.ndarray = self._kernels.layer(x, self.strips, out, bias, activation, gates, gate_bias, add)
        return done

    def layer_twice(
        self,
        x: np.ndarray,
        out: np.ndarray,
        bias: np.ndarray | None,
        activation: str,
        gate: Packed | None,
        gate_bias: np.ndarray | None,
        outer: Packed,
        outer_bias: np.ndarray | None,
        add: bool,
    ) -> np.ndarray:
        """out = h @ outer + outer_bias, added to out if `add`, where h is what `layer` of this one gives."""
        gates = None if gate is None else gate.strips
        inner = x, self.strips, bias, activation, gates, gate_bias
        done: np.ndarray = self._kernels.two_layers(*inner, outer.strips, outer_bias, out, add)
        return done

    def columns(self, first: int) -> Packed | None:
        """The columns from `first` on, without a copy; None where they do not begin at a pair of strips."""
        strips = self._kernels.columns_from(self.strips, first)
        return None if strips is None else Packed(strips, self._kernels)


def packs(weight: Any, kernels: ModuleType) -> bool:
    """Whether products of kernels.compute take this weight packed."""
    return is_narrow(kernels) and not _as_stored(weight, kernels) and kernels.products_path().name != "widened"


def _as_stored(weight: Any, kernels: ModuleType) -> bool:
    return isinstance(weight, Narrow) and kernels.compute in weight.as_stored


def is_narrow(kernels: ModuleType) -> bool:
    """Whether kernels compute products in less than float32."""
    return getattr(kernels, "compute", "float32") != "float32"


def for_products(weight: Any, kernels: ModuleType, memory: Memory) -> Any:
    """A matrix as products of kernels.compute take it: packed, stored narrow and widened, or as it is."""
    if not is_narrow(kernels) or isinstance(weight, Packed) or _as_stored(weight, kernels):
        return weight
    if packs(weight, kernels):
        return pack([weight], kernels, memory)
    kind = FORMATS[kernels.compute]
    if isinstance(weight, Narrow) and weight.bits <= kind.bits:
        return weight
    return kind.made(".weight", np.asarray(weight, np.float32))


def pack(
    matrices: Sequence[Any],
    kernels: ModuleType,
    memory: Memory,
    scales: Sequence[float] = (),
    transposed: bool = False,
) -> Packed:
    """Matrices of as many rows side by side, or one transposed, packed in the type of kernels.compute.

    scales: a factor of what each of them gives, after its weights were rounded.
    """
    shapes = [matrix.shape[::-1] if transposed else matrix.shape for matrix in matrices]
    k, widths = shapes[0][0], [shape[1] for shape in shapes]
    strips = kernels.empty_weights(kernels.compute, k, sum(widths))
    for first in range(0, sum(widths), _STEP):
        kernels.pack_weights(strips, first, _columns(matrices, widths, transposed, first, first + _STEP))
    at = 0
    for width, scale in zip(widths, scales or [1.0] * len(widths), strict=True):
        strips.scale[at : at + width] *= np.float32(scale)
        at += width
    return Packed(strips._replace(words=memory.keep(strips.words)), kernels)


def _columns(matrices: Sequence[Any], widths: list[int], transposed: bool, first: int, last: int) -> np.ndarray:
    """Columns first .. last of matrices side by side, float32."""
    parts, begin = [], 0
    for matrix, width in zip(matrices, widths, strict=True):
        a, b = max(0, first - begin), min(width, last - begin)
        if a < b:
            parts.append(_wide(matrix, slice(a, b), transposed))
        begin += width
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _wide(matrix: Any, columns: slice, transposed: bool) -> np.ndarray:
    if transposed:
        return np.ascontiguousarray(np.asarray(matrix[columns], np.float32).T)
    if isinstance(matrix, Narrow):
        return np.asarray(matrix.part(slice(None), columns), np.float32)
    return np.ascontiguousarray(matrix[:, columns], np.float32)
