"""CUDA sources compiled at run time, once per set of parameters, and their launches."""

from __future__ import annotations

from functools import cache
from typing import Any

import cupy
import numpy as np

from astra_mpi.kernels.cuda_source import source

Array = Any
#: a pointer to nothing
NULL = np.uintp(0)
#: numbers of a head, for the attention kernels
MAX_D_HEAD = 256


_asked_bytes: dict[tuple[str, str, tuple[str, ...]], int] = {}


def kernel(file: str, name: str, how: tuple[str, ...], shared_bytes: int = 0) -> Any:
    """The kernel `name` of `file`.cu, compiled with the options `how`."""
    function, key = _function(file, name, how), (file, name, how)
    if shared_bytes > _asked_bytes.get(key, 48 << 10):  # must be asked for; the function keeps the last that was
        function.max_dynamic_shared_size_bytes = _asked_bytes[key] = shared_bytes
    return function


@cache
def _function(file: str, name: str, how: tuple[str, ...]) -> Any:
    return _module(file, how).get_function(name)


@cache
def _module(file: str, how: tuple[str, ...]) -> Any:
    return cupy.RawModule(code=source(file), options=how)


def launch(
    file: str,
    name: str,
    grid: tuple[int, ...],
    block: int,
    args: tuple[Any, ...],
    how: tuple[str, ...],
    shared_bytes: int = 0,
) -> None:
    """On the current stream. args: arrays, NumPy scalars of the exact type, None for a null pointer."""
    given = tuple(NULL if arg is None else arg for arg in args)
    kernel(file, name, how, shared_bytes)(grid, (block,), given, shared_mem=shared_bytes)


def vectors(width: int, *arrays: Array | None) -> bool:
    """Whether rows of `width` numbers of these arrays can be read four at a time."""
    return width % 4 == 0 and all(
        a is None or (a.data.ptr % (4 * a.itemsize) == 0 and (a.ndim == 1 or a.strides[-2] % (4 * a.itemsize) == 0))
        for a in arrays
    )


def row_stride(x: Array) -> np.int64:
    """Numbers from one row of x (n, W) to the next; the numbers of a row are side by side."""
    assert x.strides[-1] == x.itemsize or x.shape[-1] <= 1
    return np.int64(x.strides[-2] // x.itemsize)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
