"""Arrays at addresses, inside compiled functions: one version of a kernel serves contiguous rows, rows of a wider
array, and read-only mapped files alike.
"""

from typing import Any

from llvmlite import ir
from numba import carray
from numba.core import types
from numba.extending import intrinsic

from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._simd import F32, I8, I16, I32, I64, prefetch


def _at(element: types.Type, stored: ir.Type) -> Any:
    """An intrinsic: address -> pointer to numbers of a type."""

    @intrinsic
    def pointer(typingctx, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], stored.as_pointer())

        return types.CPointer(element)(types.int64), generate

    return pointer


_floats_at, _shorts_at = _at(types.float32, F32), _at(types.uint16, I16)
_unsigned_at = _at(types.uint8, I8)
_bytes_at, _integers_at, _bits_at = _at(types.int8, I8), _at(types.int32, I32), _at(types.uint32, I32)
_longs_at = _at(types.int64, I64)


@intrinsic
def ask_line(typingctx, address):
    """Ask for the cache line at an address, to be read soon."""

    def generate(context, builder, signature, arguments):
        prefetch(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@inner()
def ask(address, n_bytes):
    """The same of so many bytes."""
    for line in range(0, n_bytes, 64):
        ask_line(address + line)  # type: ignore[call-arg]


@inner()
def floats(address, n):
    """(n,) float32 in memory."""
    return carray(_floats_at(address), (n,))


@inner()
def float_rows(address, n, width):
    """(n, width) float32 in memory."""
    return carray(_floats_at(address), (n, width))


@inner()
def byte_rows(address, n, width):
    """(n, width) int8 in memory."""
    return carray(_bytes_at(address), (n, width))


@inner()
def integer_rows(address, n, width):
    """(n, width) int32 in memory."""
    return carray(_integers_at(address), (n, width))


@inner()
def short_rows(address, n, width):
    """(n, width) uint16 in memory."""
    return carray(_shorts_at(address), (n, width))


@inner()
def longs(address, n):
    """(n,) int64 in memory."""
    return carray(_longs_at(address), (n,))


@inner()
def shorts(address, n):
    """(n,) uint16 in memory."""
    return carray(_shorts_at(address), (n,))


@inner()
def unsigned_bytes(address, n):
    """(n,) uint8 in memory."""
    return carray(_unsigned_at(address), (n,))


@inner()
def signed_bytes(address, n):
    """(n,) int8 in memory."""
    return carray(_bytes_at(address), (n,))


@inner()
def integers(address, n):
    """(n,) int32 in memory."""
    return carray(_integers_at(address), (n,))


@inner()
def bits(address, n):
    """(n,) uint32 in memory."""
    return carray(_bits_at(address), (n,))
