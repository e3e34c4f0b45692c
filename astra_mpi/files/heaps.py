"""Damage in an HDF5 file on which the library loops for ever: an object without length among variable-length texts."""

from __future__ import annotations

import mmap
from pathlib import Path

#: larger files are not searched: opening a model file of gigabytes must not read all of it
SEARCHED_BYTES = 1 << 28
#: signature, version 1 and reserved zeros of a global heap collection; then its size, and object after object
_COLLECTION = b"GCOL\x01\0\0\0"
_HEADER = 16  # of a collection, and of each object: number, references, reserved, size
_OBJECTS = (1 << 16) + 1  # their numbers are of 16 bits; free space has none


def endless(path: Path) -> int | None:
    """Where the file has such an object, in bytes from its start; None if nowhere. Sizes of 8 bytes, as usual."""
    n_bytes = path.stat().st_size
    if not 0 < n_bytes <= SEARCHED_BYTES:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = data.find(_COLLECTION)
        while begin >= 0:
            end = min(begin + max(_size(data, begin), _HEADER), n_bytes)
            where = _endless_object(data, begin + _HEADER, end)
            if where is not None:
                return where
            begin = data.find(_COLLECTION, end)
    return None


def _endless_object(data: mmap.mmap, begin: int, end: int) -> int | None:
    """The object after which the library goes on at the same place, or never ends in other ways."""
    for _ in range(_OBJECTS):
        if begin + _HEADER > end:
            return None
        size, numbered = _size(data, begin), data[begin : begin + 2] != b"\0\0"
        # free space has number 0 and counts its header; the library computes in 64 bits
        step = (_HEADER + (size + 7) % 2**64 // 8 * 8) % 2**64 if numbered else size
        if step < _HEADER:
            return begin
        begin += step
    return begin


def _size(data: mmap.mmap, begin: int) -> int:
    return int.from_bytes(data[begin + 8 : begin + 16], "little")
