"""Buffers that live from one forward pass to the next, so that no block waits for the system to hand out pages."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np


class Scratch:
    """Buffers by name, as large as the largest shape asked for. What is asked for again is overwritten.

    Forward passes that take turns have buffers of their own each: those of `turn`.
    """

    def __init__(self, xp: Any = np, dtype: type = np.float32) -> None:
        """xp: the module whose arrays they are; dtype: of activations."""
        self.xp, self.dtype = xp, dtype
        self.turn = 0
        self._buffers: dict[tuple[int, str], np.ndarray] = {}

    def __call__(self, name: str, *shape: int, dtype: type | None = None) -> np.ndarray:
        """A C-contiguous array of this shape with whatever the buffer holds."""
        size, key = prod(shape), (self.turn, name)
        if key not in self._buffers or self._buffers[key].size < size:
            self._buffers[key] = self.xp.empty(size, dtype or self.dtype)
        return self._buffers[key][:size].reshape(shape)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes held per name."""
        sizes: dict[str, int] = {}
        for (_, name), buffer in self._buffers.items():
            sizes[name] = sizes.get(name, 0) + buffer.nbytes
        return sizes
