"""Blocks of a GGUF file as they are, without widening them: rows are outputs, so whole rows change places at most."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from astra_mpi.convert.gguf.arrange import Arrange
from astra_mpi.device.formats import FORMATS
from astra_mpi.device.formats.blocks import Blocks
from astra_mpi.device.formats.ggml import QUANTISED, Numbers
from astra_mpi.kernels.blocks import BLOCK
from astra_mpi.models.hf import Source, arranged

#: type of a file -> the format that keeps it. Q4_K has blocks of 32 too, whose factors become float16; the others have
#: more than 4 bits, or blocks of 16, and are rounded to 8
KEPT = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "Q8_0": "q8_0",
    "Q4_0": "q4_0",
    "Q4_1": "q4_1",
    "Q4_K": "q4_1",
    "Q5_0": "q8_0",
    "Q5_1": "q8_0",
    "Q5_K": "q8_0",
    "Q6_K": "q8_0",
    "IQ4_NL": "q8_0",
    "Q2_K": "q8_0",
    "Q3_K": "q8_0",
    "IQ4_XS": "q8_0",
}
#: types whose numbers change in their format, a little
ROUNDED = tuple(kind for kind, kept in KEPT.items() if kept in QUANTISED and kind.lower() != kept)
#: numbers that are rearranged at a time
_STEP = 1 << 22


class Rows(Protocol):
    """What is asked of a tensor."""

    @property
    def dtype(self) -> str: ...

    @property
    def stored(self) -> tuple[int, ...]: ...

    @property
    def arrange(self) -> Arrange | None: ...

    def raw_rows(self, rows: np.ndarray) -> np.ndarray:
        """Some rows as bytes, (n, b)."""


def kept_blocks(name: str, tensor: Rows, shape: tuple[int, ...], source: Source) -> Any:
    """Weight `name` of `shape` in blocks, or None where they would not be its tensor's rows."""
    kind: type[Blocks] = FORMATS[KEPT[tensor.dtype]]
    if not issubclass(kind, Blocks) or not kind.holds(name, shape) or len(tensor.stored) != 2:
        return None
    rows = _rows(name, tensor, shape, source)
    if rows is None:
        return None
    blocks = kind.empty(len(rows), tensor.stored[1], by_rows=not name.endswith(".weight"))
    step = max(1, _STEP // tensor.stored[1] // BLOCK) * BLOCK
    for first in range(0, len(rows), step):
        with np.errstate(all="ignore"):  # factors that are not finite are told when the model file is written
            blocks.fill(first, _scaled(read_blocks(tensor.dtype, tensor.raw_rows(rows[first : first + step])), source))
    return blocks


def kept_values(tensor: Rows) -> np.ndarray:
    """A tensor of ROUNDED as its format keeps it, (rows, width) float32."""
    kind: type[Blocks] = FORMATS[KEPT[tensor.dtype]]
    n, width = math.prod(tensor.stored[:-1]), tensor.stored[-1]
    blocks = kind.empty(n, width, by_rows=True)
    blocks.fill(0, read_blocks(tensor.dtype, tensor.raw_rows(np.arange(n))))
    return np.asarray(blocks)


def _rows(name: str, tensor: Rows, shape: tuple[int, ...], source: Source) -> np.ndarray | None:
    """Which rows of the file are the weight's outputs, in their order; None if these are anything else."""
    if source.remake is not None or source.offset or source.times or source.more:
        return None
    layer = name.endswith(".weight")
    # what is done to the rows is done to two columns that count them
    marks = np.arange(2 * tensor.stored[0]).reshape(-1, 2)
    if tensor.arrange is not None:
        marks = tensor.arrange(marks)
    try:
        found = arranged(name, marks, (2, shape[1]) if layer else (shape[0], 2), source)
    except ValueError:
        return None
    found = found.T if layer else found
    whole = tensor.stored[1] == shape[0 if layer else 1] and (found[:, 0] % 2 == 0).all()
    return found[:, 0] // 2 if whole and (found[:, 1] == found[:, 0] + 1).all() else None


def _scaled(blocks: Numbers, source: Source) -> Numbers:
    """What the weights are multiplied with goes into factors and least weights."""
    if source.scale == 1:
        return blocks
    factor, least = (
        None if part is None else (part.astype(np.float32) * np.float32(source.scale)).astype(np.float16)
        for part in (blocks.factor, blocks.least)
    )
    assert factor is not None
    return Numbers(factor, least, blocks.numbers)


def read_blocks(kind: str, raw: np.ndarray) -> Numbers:
    """Rows of bytes (n, b) of a type of KEPT -> their blocks of 32."""
    if kind in ("Q8_0", "Q4_0", "Q4_1"):
        n_least = 2 * (kind == "Q4_1")
        n_bytes = 2 + n_least + (BLOCK if kind == "Q8_0" else BLOCK // 2)
        blocks = raw.reshape(len(raw), -1, n_bytes)
        factor = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
        least = np.ascontiguousarray(blocks[..., 2:4]).view(np.float16)[..., 0] if n_least else None
        numbers = blocks[..., 2 + n_least :]
        if kind == "Q8_0":
            return Numbers(factor, None, numbers ^ np.uint8(0x80))
        return Numbers(factor, least, np.concatenate([numbers & 15, numbers >> 4], axis=-1))
    if kind == "Q4_K":
        return _q4_k(raw)
    import gguf

    wide = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    return QUANTISED[KEPT[kind]](wide.reshape(len(raw), -1, BLOCK))


def _q4_k(raw: np.ndarray) -> Numbers:
    """256 numbers in eight blocks: a factor and a least weight of the whole, times 6 bits of each block."""
    whole = raw.reshape(-1, 144)
    factors = np.ascontiguousarray(whole[:, :4]).view(np.float16).astype(np.float32)
    low, least_low, high = (whole[:, 4 + 4 * i : 8 + 4 * i] for i in range(3))
    scale = np.concatenate([low & 63, (high & 15) | ((low >> 2) & 48)], axis=1)
    least = np.concatenate([least_low & 63, (high >> 4) | ((least_low >> 2) & 48)], axis=1)
    numbers = whole[:, 16:].reshape(-1, 4, 1, BLOCK)
    numbers = np.concatenate([numbers & 15, numbers >> 4], axis=2)
    shape = len(raw), math.prod(numbers.shape[:3]) // len(raw)
    return Numbers(
        (factors[:, :1] * scale).astype(np.float16).reshape(shape),
        (-factors[:, 1:] * least).astype(np.float16).reshape(shape),
        numbers.reshape(*shape, BLOCK),
    )
