"""Arrays at addresses, inside compiled functions: one version of a kernel serves contiguous rows, rows of a wider
array, and read-only mapped files alike.
"""

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic


def _pointer(number: Any) -> Any:
    pointer_type = types.CPointer(number)

    @intrinsic
    def pointer(typingctx, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(pointer_type))

        return pointer_type(types.int64), generate

    return pointer


_floats, _halves = _pointer(types.float32), _pointer(types.uint16)


@njit
def floats_at(address, n):
    """The n float32 at an address."""
    return carray(_floats(address), (n,))


@njit
def halves_at(address, n):
    """The n uint16 at an address."""
    return carray(_halves(address), (n,))


def aligned(n_bytes: int) -> np.ndarray:
    """Zeros, uint8 (n_bytes,), that begin at a cache line."""
    room = np.zeros(n_bytes + 64, np.uint8)
    first = -room.ctypes.data % 64
    return room[first : first + n_bytes]
