"""Buffers that live from one forward pass to the next, so that no block waits for the system to hand out pages."""

from __future__ import annotations

from math import prod

import numpy as np


class Scratch:
    """Float32 buffers by name, as large as the largest shape asked for. What is asked for again is overwritten."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def __call__(self, name: str, *shape: int) -> np.ndarray:
        """A C-contiguous array of this shape with whatever the buffer holds."""
        size = prod(shape)
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = np.empty(size, np.float32)
        return self._buffers[name][:size].reshape(shape)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes held per name."""
        return {name: buffer.nbytes for name, buffer in self._buffers.items()}
