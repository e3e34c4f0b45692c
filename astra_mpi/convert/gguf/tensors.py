"""Tensors of a GGUF file as those of a Hugging Face folder: read one at a time, widened, rows put back in order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.checkpoint.folder import Tensor
from astra_mpi.config import require
from astra_mpi.convert.gguf.arrange import Arrange
from astra_mpi.convert.gguf.blocks import KEPT, kept_blocks, kept_values
from astra_mpi.convert.gguf.header import Header
from astra_mpi.errors import InputError
from astra_mpi.models.hf import Source

#: types whose blocks become numbers here
TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
)
#: those of one number each
PLAIN = ("F32", "F16", "BF16")
#: numbers that are widened at a time: 4 MiB of float32
_PIECE = 1 << 20


@dataclass(frozen=True)
class GGUFTensor(Tensor):
    """A tensor by its name in the file; `shape` and values are those of the Hugging Face checkpoint.

    dtype: name of its type; stored: its shape in the file; arrange: array of that shape -> array of `shape`.
    """

    stored: tuple[int, ...] = ()
    offset: int = 0
    arrange: Arrange | None = None

    @property
    def kept_as(self) -> str:
        return KEPT[self.dtype]

    def kept(self, name: str, shape: tuple[int, ...], source: Source) -> Any:
        return kept_blocks(name, self, shape, source)

    def read_kept(self) -> np.ndarray:
        """`read` of the numbers that the type's format keeps."""
        array = kept_values(self).reshape(self.stored)
        return array if self.arrange is None else self.arrange(array)

    def raw_rows(self, rows: np.ndarray) -> np.ndarray:
        """Some rows as the bytes that they are in the file, (n, b)."""
        n_bytes = row_bytes(self.dtype, self.stored[-1])
        least, last = int(rows.min()), int(rows.max()) + 1
        raw: np.ndarray = self._bytes(least * n_bytes, (last - least) * n_bytes).reshape(-1, n_bytes)
        return raw if np.array_equal(rows, np.arange(least, last)) else raw[rows - least]

    def check(self) -> None:
        """Types and sizes are checked when the file is opened."""

    def pieces(self) -> Iterator[np.ndarray]:
        if self.arrange is not None:
            yield self.read()
            return
        rows, n_bytes = self._rows()
        step = max(1, _PIECE // max(1, self.stored[-1]))
        for first in range(0, rows, step):
            n = min(step, rows - first)
            wide = _widened(self._bytes(first * n_bytes, n * n_bytes).reshape(n, n_bytes), self.dtype)
            yield wide.reshape(-1, *self.shape[1:]) if len(self.shape) == 2 else wide.reshape(-1)

    def read(self) -> np.ndarray:
        rows, n_bytes = self._rows()
        wide = np.empty((rows, self.stored[-1]), np.float32)
        step = max(1, _PIECE // max(1, self.stored[-1]))
        for first in range(0, rows, step):
            n = min(step, rows - first)
            wide[first : first + n] = _widened(
                self._bytes(first * n_bytes, n * n_bytes).reshape(n, n_bytes), self.dtype
            )
        array = wide.reshape(self.stored)
        return array if self.arrange is None else self.arrange(array)

    def _rows(self) -> tuple[int, int]:
        """-> (rows, bytes of each)."""
        return math.prod(self.stored[:-1]), row_bytes(self.dtype, self.stored[-1])

    def _bytes(self, first: int, n_bytes: int) -> np.ndarray:
        with self.path.open("rb") as file:
            file.seek(self.offset + first)
            raw = np.fromfile(file, np.uint8, n_bytes)
        require(len(raw) == n_bytes, f"{self.path} was cut short while it was read; download it again")
        return raw


def gguf_library(path: Path) -> Any:
    """The `gguf` package. InputError with the command that installs it."""
    try:
        import gguf
    except ImportError as exc:
        raise InputError(f"reading {path} needs {exc.name}; pip install 'astra-mpi[text]'") from exc
    return gguf


def row_bytes(kind: str, width: int) -> int:
    """Bytes of a row of so many numbers."""
    import gguf

    block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return width // block * n_bytes


def _widened(raw: np.ndarray, kind: str) -> np.ndarray:
    """Rows of bytes (n, b) -> float32 (n, width)."""
    import gguf

    if kind in ("F32", "F16"):
        return raw.view("<f4" if kind == "F32" else "<f2").astype(np.float32)
    with np.errstate(all="ignore"):  # a scale that is NaN is told when the model file is written
        wide: np.ndarray = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    return wide


def open_tensors(header: Header) -> dict[str, GGUFTensor]:
    """By name, as they are in the file. InputError on types that are not supported and on what the file cuts short."""
    gguf, path = gguf_library(header.path), header.path
    names = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    found = {}
    for entry in header.tensors.values():
        kind = names.get(entry.kind, f"of the unknown type {entry.kind}")
        require(
            kind in TYPES,
            f"{path}: tensor {entry.name} is {kind}, which is not supported; use a file in one of {', '.join(TYPES)}",
        )
        block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        width = entry.shape[-1] if entry.shape else 1
        whole = bool(entry.shape) and all(entry.shape) and width % block == 0
        require(whole, f"{path}: tensor {entry.name} has shape {entry.shape}, which {kind} cannot; download it again")
        end = entry.offset + math.prod(entry.shape) // block * n_bytes
        require(
            end <= header.n_bytes,
            f"{path} is truncated: tensor {entry.name} ends at byte {end:,} and the file at {header.n_bytes:,};"
            " download it again",
        )
        found[entry.name] = GGUFTensor(path, entry.name, kind, entry.shape, entry.shape, entry.offset)
    return found
