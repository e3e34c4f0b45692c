"""Arrays that begin at a line of the cache."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

#: bytes of a line, and of the widest vector
LINE = 64

#: bytes of a large page of memory, and of what is taken from the system for many arrays at once: nothing of it is used
#: before arrays are in it
PAGE, _REGION = 2 << 20, 64 << 20


def aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An array of zeros of this shape."""
    n_bytes = prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(n_bytes + LINE, np.uint8)
    first = -address(memory) % LINE
    return memory[first : first + n_bytes].view(dtype).reshape(shape)


#: NumPy's C interface promises that the first field of an array, behind what all objects have, is where its numbers lie
_HEAD, _pointer = object.__basicsize__, ctypes.c_void_p.from_address


def address(array: np.ndarray | None) -> int:
    """Where its first number lies; 0 for None."""
    if type(array) is np.ndarray:  # what the last line does, in a tenth of the time
        return _pointer(id(array) + _HEAD).value or 0
    return 0 if array is None else int(array.__array_interface__["data"][0])


class _Regions:
    """Memory that arrays fill one after another. It lives as long as one of them does. NumPy asks for large pages."""

    memory: weakref.ref[np.ndarray] | None = None
    used = 0

    @classmethod
    def take(cls, n_bytes: int) -> np.ndarray:
        memory = None if cls.memory is None else cls.memory()
        if memory is None or cls.used + n_bytes > len(memory):
            memory = np.empty(max(_REGION, n_bytes) + PAGE, np.uint8)
            cls.memory, cls.used = weakref.ref(memory), -address(memory) % PAGE
        taken = memory[cls.used : cls.used + n_bytes]
        cls.used += -(-n_bytes // LINE) * LINE
        return taken


def row_floats(n: int) -> int:
    """Floats from row to row of n, an odd number of lines: numbers of a column then lie in all sets of a cache, and not
    in a few."""
    return (-(-4 * n // LINE) | 1) * LINE // 4


def lasting_rows(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Matrices of as many rows, (m, n1), (m, n2), .., side by side, as float32 in large pages of memory, with rows
    `row_floats` apart."""
    m, n = len(matrices[0]), sum(matrix.shape[1] for matrix in matrices)
    whole = _Regions.take(4 * m * row_floats(n)).view(np.float32).reshape(m, row_floats(n))
    return np.concatenate(matrices, axis=1, out=whole[:, :n])


def lasting(array: np.ndarray) -> np.ndarray:
    """A copy in large pages of memory, among others that are kept for as long: the CPU reads it with fewer look-ups of
    pages, and asks for more of it ahead."""
    if not array.nbytes:
        return array
    kept = _Regions.take(array.nbytes).view(array.dtype).reshape(array.shape)
    kept[...] = array
    return kept
