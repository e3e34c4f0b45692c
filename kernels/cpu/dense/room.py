"""Buffers of a thread that outlive a call: memory anew for every call would cost more than what is computed in it."""

import threading
from math import prod

import numpy as np

from astra_mpi.kernels.aligned import aligned


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.of: dict[tuple[str, int], np.ndarray] = {}


_buffers = _Buffers()


def room(name: str, *shape: int, index: int = 0) -> np.ndarray:
    """float32 of this shape, with whatever a call before has left under this name.

    index: of a share of a native task, whose room the calling thread holds.
    """
    size = prod(shape)
    held = _buffers.of.get((name, index))
    if held is None or held.size < size:
        held = _buffers.of[name, index] = aligned((size,))
    return held[:size].reshape(shape)
