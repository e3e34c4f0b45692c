"""GGML's blocks: 32 inputs of an output share a float16 factor, and in Q4_1 a least weight.

The values are those of GGUF files; the layout is that of the kernels (kernels/blocks.py): strips of 16 outputs. Where
products are computed in int8, they are made of the blocks as they are; elsewhere a tile of columns is widened first.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Self

import numpy as np

from astra_mpi.device.formats.ggml import QUANTISED, Numbers
from astra_mpi.device.formats.narrow import STEP, Narrow, is_layer, matmul
from astra_mpi.device.memory import Memory
from astra_mpi.device.scratch import Scratch
from astra_mpi.kernels.blocks import ADDED, BLOCK, RECORDS, STRIP, widened

#: up to so many float32 rows read the blocks; more of them pay for widening
_FEW_ROWS = 64
#: strips come in pairs
_PAIR = 2 * STRIP


@dataclass(frozen=True, eq=False)
class Blocks(Narrow):
    """Bytes (strips, inputs / 32, bytes of a block). Layers whose inputs are no multiple of 32 are float16."""

    number = np.dtype("u1")
    tagged = True
    layers_only = True
    as_stored = ("int8",)
    #: largest errors of rounding: in ranges of a block, and in its largest magnitudes
    off_range: ClassVar[float] = 0.0
    off_largest: ClassVar[float] = 0.0

    n_outputs: int = 0
    by_rows: bool = False  # outputs are rows, as in a word embedding, not columns

    @classmethod
    def holds(cls, name: str, shape: tuple[int, ...]) -> bool:
        return super().holds(name, shape) and min(shape) > 0 and _inputs(name, shape) % BLOCK == 0

    @classmethod
    def instead(cls, name: str, shape: tuple[int, ...]) -> str:
        return "float16" if super().holds(name, shape) else "float32"

    @classmethod
    def stored_shape(cls, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not cls.holds(name, shape):
            return shape
        k = _inputs(name, shape)
        return _strips(shape[0] * shape[1] // k), k // BLOCK, RECORDS[cls.dtype].itemsize

    @classmethod
    def made(cls, name: str, array: np.ndarray) -> Self:
        outputs = array.T if is_layer(name, array.shape) else array  # (n, k)
        n, k = outputs.shape
        blocks = cls.empty(n, k, by_rows=not is_layer(name, array.shape))
        step = max(1, STEP // k // _PAIR) * _PAIR
        with np.errstate(all="ignore"):  # what exceeds the type is told by `finite`
            for first in range(0, n, step):
                part = np.ascontiguousarray(outputs[first : first + step], np.float32)
                blocks.fill(first, QUANTISED[cls.dtype](part.reshape(len(part), -1, BLOCK)))
        return blocks

    @classmethod
    def empty(cls, n: int, k: int, by_rows: bool) -> Self:
        """n outputs of k inputs, to be filled."""
        shape = _strips(n), k // BLOCK, RECORDS[cls.dtype].itemsize
        return cls(np.zeros(shape, np.uint8), None, n, by_rows)

    def fill(self, first: int, blocks: Numbers) -> None:
        """Write outputs first, .. (a multiple of 16): blocks (n, k / 32, 32)."""
        n, n_blocks, _ = blocks.numbers.shape
        rest = -n % STRIP
        into = self.records[first // STRIP : -(-(first + n) // STRIP)]

        def strips(array: np.ndarray) -> np.ndarray:
            whole = np.concatenate([array, np.zeros((rest, *array.shape[1:]), array.dtype)]) if rest else array
            return whole.reshape(len(into), STRIP, *array.shape[1:])

        into["factor"] = strips(blocks.factor).swapaxes(1, 2)
        if blocks.least is not None:
            into["least"] = strips(blocks.least).swapaxes(1, 2)
        numbers = blocks.numbers
        if self.dtype != "q8_0":
            numbers = numbers[..., : BLOCK // 2] | (numbers[..., BLOCK // 2 :] << 4)
        words = strips(numbers).reshape(len(into), STRIP, n_blocks, numbers.shape[2] // 4, 4)
        into["numbers"] = words.transpose(0, 2, 3, 1, 4)

    @classmethod
    def from_stored(cls, name: str, shape: tuple[int, ...], values: np.ndarray, scale: np.ndarray | None) -> Self:
        by_rows = not is_layer(name, shape)
        return cls(values, None, shape[0 if by_rows else 1], by_rows)

    @classmethod
    def finite(cls, values: np.ndarray) -> bool:
        records = values.reshape(-1, RECORDS[cls.dtype].itemsize).view(RECORDS[cls.dtype])
        halves = [name for name in records.dtype.names or () if name != "numbers"]
        return all(bool(np.isfinite(records[name]).all()) for name in halves)

    @classmethod
    def rounding(cls, name: str, before: np.ndarray) -> np.ndarray:
        outputs = before.T if is_layer(name, before.shape) else before
        blocks = outputs.reshape(len(outputs), -1, BLOCK)
        largest, spread = np.abs(blocks).max(axis=2), blocks.max(axis=2) - blocks.min(axis=2)
        # factors and least weights are rounded to float16, whose smallest number is 2^-24
        allowed = spread * cls.off_range + largest * (cls.off_largest + 2.0**-9) + 2.0**-17
        wide = np.repeat(allowed, BLOCK, axis=1)
        return wide.T if is_layer(name, before.shape) else wide

    @classmethod
    def rounded_tensor(cls, weight: Any, inputs: tuple[int, ...]) -> Any:
        if int(np.prod([weight.shape[axis] for axis in inputs])) % BLOCK:
            return weight.half().float()
        return super().rounded_tensor(weight, inputs)

    @property
    def records(self) -> np.ndarray:
        """(strips, blocks) of the layout's records."""
        return self.values.view(RECORDS[self.dtype])[..., 0]

    @property
    def n_inputs(self) -> int:
        return self.values.shape[1] * BLOCK

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_outputs, self.n_inputs) if self.by_rows else (self.n_inputs, self.n_outputs)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if self.by_rows:
            return self._outputs(np.arange(self.n_outputs)[rows])
        if not isinstance(rows, slice):
            taken: np.ndarray = self[:][rows]
            return taken
        first, last, step = rows.indices(self.n_inputs)
        blocks = slice(first // BLOCK, max(first // BLOCK, -(-last // BLOCK)))
        wide = widened(self.dtype, self.records[:, blocks])  # (strips, blocks, 16, 32)
        inputs = np.moveaxis(wide, (1, 3), (0, 1)).reshape(-1, len(wide) * STRIP)[:, : self.n_outputs]
        begin = blocks.start * BLOCK
        return np.ascontiguousarray(inputs[first - begin : max(0, last - begin) : step])

    def _outputs(self, ids: np.ndarray) -> np.ndarray:
        """Outputs (..,) -> (.., k) float32."""
        strip, lane = np.divmod(ids.reshape(-1), STRIP)
        found = self._numbers(strip, lane)
        wide = found.numbers.astype(np.float32)
        wide -= np.float32(ADDED[self.dtype])
        wide *= found.factor.astype(np.float32)[..., None]
        if found.least is not None:
            wide += found.least.astype(np.float32)[..., None]
        return wide.reshape(*ids.shape, self.n_inputs)

    def _numbers(self, strip: np.ndarray, lane: np.ndarray, blocks: slice = slice(None)) -> Numbers:
        records = self.records[:, blocks]
        numbers = records["numbers"][strip, :, :, lane]  # (n, blocks, words, 4)
        if self.dtype != "q8_0":
            numbers = np.concatenate([numbers & 15, numbers >> 4], axis=2)
        least = records["least"][strip, :, lane] if "least" in (records.dtype.names or ()) else None
        return Numbers(records["factor"][strip, :, lane], least, numbers.reshape(*numbers.shape[:2], BLOCK))

    def part(self, rows: slice, columns: slice) -> Self | np.ndarray:
        """A copy, in blocks; float32 where it begins or ends inside of a block."""
        outputs, inputs = (rows, columns) if self.by_rows else (columns, rows)
        first, last, step = inputs.indices(self.n_inputs)
        if first % BLOCK or last % BLOCK or step != 1 or first >= last:
            return np.ascontiguousarray(np.asarray(self)[rows, columns])
        strip, lane = np.divmod(np.arange(self.n_outputs)[outputs], STRIP)
        taken = self.empty(len(strip), last - first, self.by_rows)
        taken.fill(0, self._numbers(strip, lane, slice(first // BLOCK, last // BLOCK)))
        return taken

    def move(self, memory: Memory) -> None:
        """From the file that the numbers are mapped from to large pages of memory, whose bytes are read faster."""
        object.__setattr__(self, "values", memory.keep(self.values))

    def product(self, x: np.ndarray, out: np.ndarray, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
        return super().product(x, out, kernels, scratch) if self.by_rows else self._times(x, out, kernels, scratch)

    def product_transposed(self, x: np.ndarray, out: np.ndarray, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
        if self.by_rows:
            return self._times(x, out, kernels, scratch)
        return super().product_transposed(x, out, kernels, scratch)

    def _times(self, x: np.ndarray, out: np.ndarray, kernels: ModuleType, scratch: Scratch) -> np.ndarray:
        """out (rows, n) = x (rows, k) @ the blocks (k, n)."""
        if getattr(kernels, "compute", "float32") == "int8":
            return kernels.multiply_blocks(self.dtype, kernels.quantise_rows(x), self.values, out)
        if len(x) <= _FEW_ROWS:
            return kernels.times_blocks(self.dtype, x, self.values, out)
        k, n = self.n_inputs, self.n_outputs
        for columns in self.tiles(n, k, STRIP):
            tile = scratch("tile", k, columns.stop - columns.start)
            wide = kernels.widen_blocks(self.dtype, self.values, columns.start, tile)
            matmul(x, wide, out[:, columns], kernels)
        return out

    def widen(self, columns: slice, kernels: ModuleType, tile: np.ndarray) -> np.ndarray:
        if self.by_rows or columns.start % STRIP:
            return super().widen(columns, kernels, tile)
        return kernels.widen_blocks(self.dtype, self.values, columns.start, tile)


class Q8_0(Blocks):
    """Integers -127 .. 127 times a factor."""

    dtype = "q8_0"
    bits = 8.5
    off_largest = 1 / 254


class Q4_0(Blocks):
    """Integers -8 .. 7 times a factor; a number as large as the largest, of the other sign, is a whole step off."""

    dtype = "q4_0"
    bits = 4.5
    off_largest = 1 / 8


class Q4_1(Blocks):
    """Integers 0 .. 15 times a factor, above the least weight."""

    dtype = "q4_1"
    bits = 5
    off_range = 1 / 30


def _inputs(name: str, shape: tuple[int, ...]) -> int:
    return shape[0] if is_layer(name, shape) else shape[1]


def _strips(n: int) -> int:
    return -(-n // _PAIR) * 2
