"""Arrays that begin at a line of the cache."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

#: bytes of a line, and of the widest vector
LINE = 64


def aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An array of zeros of this shape."""
    n_bytes = prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(n_bytes + LINE, np.uint8)
    first = -address(memory) % LINE
    return memory[first : first + n_bytes].view(dtype).reshape(shape)


def address(array: np.ndarray | None) -> int:
    """Where its first number lies; 0 for None."""
    return 0 if array is None else int(array.__array_interface__["data"][0])
