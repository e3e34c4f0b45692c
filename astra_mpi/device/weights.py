"""Weights as they are stored: float32 as plain arrays, other formats as `Narrow`, widened where they are used.

A narrow matrix stays narrow in memory. A product with a few rows may read it as it is; one with many rows widens a tile
of columns into a scratch buffer before BLAS multiplies by it, which the rows pay back.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.device.formats import format_of
from astra_mpi.device.formats.blocks import Blocks
from astra_mpi.device.formats.narrow import Narrow
from astra_mpi.device.memory import Memory
from astra_mpi.device.packed import Packed
from astra_mpi.device.scratch import Scratch
from astra_mpi.device.xp import module_of
from astra_mpi.kernels.blocks import Layer


class SideBySide:
    """Matrices of as many rows, (m, n1), (m, n2), .., as one (m, n1 + n2 + ..), none of them copied."""

    def __init__(self, *matrices: np.ndarray | Narrow | Packed) -> None:
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
        products(x, self.matrices, [out[:, columns] for columns in self.columns], kernels, scratch)
        return out


Matrix = np.ndarray | Narrow | Packed | SideBySide
#: canonical name -> float32 array, or a narrow matrix
Weights = Mapping[str, Any]


def product(x: np.ndarray, weight: Matrix, out: np.ndarray, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
    """out (k, n) = x (k, m) @ weight (m, n); out may be row-strided."""
    if isinstance(weight, Narrow | Packed | SideBySide):
        return weight.product(x, out, kernels, scratch)
    return _dense(x, weight, out, kernels)


def _dense(
    x: np.ndarray,
    weight: np.ndarray,
    out: np.ndarray,
    kernels: ModuleType,
    bias: np.ndarray | None = None,
    activation: str = "",
    add: bool = False,
) -> np.ndarray:
    """`kernels.dense`, also where kernels leave products to a device's library."""
    if hasattr(kernels, "dense"):
        done: np.ndarray = kernels.dense(x, weight, out, bias, activation, add)
        return done
    made = module_of(x).matmul(x, weight, out=None if add else out)
    if activation:
        kernels.activate(made, bias, activation)
    elif add:
        return kernels.add_residual(out, made, bias)
    elif bias is not None:
        made += bias
    return made


def products(
    x: np.ndarray,
    weights: Sequence[Matrix],
    outs: Sequence[np.ndarray],
    kernels: ModuleType,
    scratch: Scratch,
) -> None:
    """`product` of the same rows with several weights; rows become int8 blocks only once."""
    compute = getattr(kernels, "compute", "float32")
    blocks = [w for w in weights if isinstance(w, Blocks) and compute in w.as_stored and not w.by_rows]
    if len(blocks) == len(weights):
        rows = kernels.quantise_rows(x)
        for block, out in zip(blocks, outs, strict=True):
            kernels.multiply_blocks(block.dtype, rows, block.values, out)
        return
    for weight, out in zip(weights, outs, strict=True):
        product(x, weight, out, kernels, scratch)


def linear(
    x: np.ndarray,
    weight: Matrix,
    out: np.ndarray,
    kernels: ModuleType,
    scratch: Scratch,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """out (k, n) = x (k, m) @ weight (m, n) + bias (n,); out may be row-strided."""
    if isinstance(weight, Packed):
        return weight.layer(x, out, bias)
    if not isinstance(weight, Narrow | SideBySide):
        return _dense(x, weight, out, kernels, bias)
    product(x, weight, out, kernels, scratch)
    if bias is not None:
        out += bias
    return out


def add_linear(
    x: np.ndarray, weight: np.ndarray, total: np.ndarray, kernels: ModuleType, bias: np.ndarray | None
) -> np.ndarray:
    """total (k, n) += x (k, m) @ weight (m, n) + bias (n,), which is returned; weight is an array."""
    return _dense(x, weight, total, kernels, bias, add=True)


def activated(
    x: np.ndarray,
    weight: Matrix,
    out: np.ndarray,
    kernels: ModuleType,
    scratch: Scratch,
    bias: np.ndarray | None,
    activation: str,
    gate: Matrix | None = None,
    gate_bias: np.ndarray | None = None,
) -> np.ndarray:
    """out (k, n) = act(x (k, m) @ weight (m, n) + bias); with a gate (x @ weight + bias) * act(x @ gate + its bias)."""
    if isinstance(weight, Packed) and (gate is None or isinstance(gate, Packed)):
        return weight.layer(x, out, bias, activation, gate, gate_bias)
    if gate is None and not isinstance(weight, Narrow | Packed | SideBySide):
        return _dense(x, weight, out, kernels, bias, activation)
    if gate is None:
        product(x, weight, out, kernels, scratch)
        return kernels.activate(out, bias, activation)
    gates = scratch("gate", len(x), gate.shape[1])
    products(x, (weight, gate), (out, gates), kernels, scratch)
    return kernels.activate_gated(out, bias, gates, gate_bias, activation)


def mlp_in_blocks(
    x: np.ndarray,
    layers: tuple[Matrix, Matrix | None, Matrix],
    biases: tuple[np.ndarray | None, np.ndarray | None],
    activation: str,
    out: np.ndarray,
    kernels: ModuleType,
) -> np.ndarray | None:
    """out (k, n) = `activated` of the first layer and its gate @ the last one. None unless all are in blocks, and the
    kernels make int8 blocks of the inner activations as they come."""
    inner, gate, outer = layers
    if not (isinstance(inner, Blocks) and isinstance(outer, Blocks) and isinstance(gate, Blocks | None)):
        return None
    if inner.by_rows or outer.by_rows or getattr(kernels, "compute", "") not in Blocks.as_stored:
        return None
    first, second = (
        None if one is None else Layer(one.dtype, one.values, one.n_outputs, bias)
        for one, bias in zip((inner, gate), biases, strict=True)
    )
    made = first and kernels.activated_blocks(x, first, second, activation)
    return None if made is None else kernels.multiply_blocks(outer.dtype, made, outer.values, out)


def product_transposed(x: np.ndarray, weight: np.ndarray | Narrow, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
    """x (k, n) @ weight (m, n) transposed -> (k, m), a new array."""
    if isinstance(weight, Narrow):
        return weight.product_transposed(x, np.empty((len(x), len(weight)), np.float32), kernels, scratch)
    return kernels.matmul(x, weight.T) if hasattr(kernels, "matmul") else x @ weight.T


def part(weight: np.ndarray | Narrow, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray | Narrow:
    """A copy of some rows and columns of a matrix, in its type."""
    if isinstance(weight, Narrow):
        return weight.part(rows, columns)
    return module_of(weight).array(weight[rows, columns], order="C")


def side_by_side(matrices: Sequence[np.ndarray], memory: Memory) -> np.ndarray:
    """Matrices of as many rows as one, a copy; on a CPU in large pages."""
    xp = module_of(matrices[0])
    return memory.keep_rows(matrices) if xp is np else xp.concatenate(matrices, axis=1)


def moved(weight: Matrix, memory: Memory) -> Matrix:
    """A float32 matrix that lies in a file, in large pages of memory; others as they are."""
    if isinstance(weight, np.ndarray) and mapped_file(weight) is not None:
        return memory.move_rows(weight)
    return weight


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
    """Weight `name` (float32) as the format `dtype` stores it; what that leaves alone, vectors too, is float32.

    Numbers beyond the format become infinite or NaN.
    """
    kind = format_of(name, array.shape, dtype)
    return np.ascontiguousarray(array, np.float32) if kind.dtype == "float32" else kind.made(name, array)
