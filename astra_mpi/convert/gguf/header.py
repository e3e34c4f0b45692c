"""The header of a GGUF file: metadata and where the tensors lie.

`gguf.GGUFReader` believes every count and length that a file states; here none reaches beyond the file's end.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError

_MAGIC = b"GGUF"
_VERSIONS = 2, 3
#: numbers of the format's value types -> how `struct` reads them
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT, _MOST_AXES = 32, 4
_AGAIN = "download it again"


@dataclass(frozen=True)
class Entry:
    """A tensor as the header describes it."""

    name: str
    shape: tuple[int, ...]  # slowest axis first, as NumPy has it
    kind: int  # number of its type
    offset: int  # of its first byte, from the file's beginning


@dataclass(frozen=True)
class Header:
    """What a file says before its tensors."""

    path: Path
    metadata: dict[str, Any]  # numbers, truth values, texts, arrays of numbers and lists of texts
    tensors: dict[str, Entry]
    n_bytes: int  # of the file


def read_header(path: Path) -> Header:
    """InputError on a file that is truncated, damaged, of another format or version."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
            require(start == _MAGIC, f"{path} is not a GGUF file: it begins with {start!r}; give one, or {_AGAIN}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
                return _Reading(path, blob).header()
    except OSError as exc:
        raise InputError(f"{path} cannot be read ({exc.strerror}); check the path") from exc


class _Reading:
    """A place in the file that moves on."""

    def __init__(self, path: Path, blob: mmap.mmap) -> None:
        self.path, self.blob, self.place, self.end = path, blob, len(_MAGIC), len(blob)

    def header(self) -> Header:
        version = self.number("<I")
        swapped = version & 0xFFFF == 0
        require(not swapped, f"{self.path} is big-endian; make it anew for little-endian machines, as most are")
        known = " or ".join(map(str, _VERSIONS))
        require(
            version in _VERSIONS, f"{self.path} is version {version} of GGUF, not {known}; make it anew with llama.cpp"
        )
        n_tensors, n_keys = self.number("<Q"), self.number("<Q")
        metadata = self._named("metadata key", n_keys, 12, self._value_of_any_type)
        entries = self._named("tensor", n_tensors, 24, self._entry)
        start = _aligned(self.path, metadata.get("general.alignment", _ALIGNMENT), self.place)
        tensors = {name: Entry(name, shape, kind, start + place) for name, (shape, kind, place) in entries.items()}
        return Header(self.path, metadata, tensors, self.end)

    def _named(self, what: str, count: int, least_bytes: int, read: Callable[[], Any]) -> dict[str, Any]:
        """`count` values, of at least so many bytes each, by the names before them."""
        self.check_room(count * least_bytes)
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self.text()
            require(name not in found, f"{self.path} has the {what} {name} twice; {_AGAIN}")
            found[name] = read()
        return found

    def check_room(self, n_bytes: int) -> None:
        """InputError if the file ends before so many bytes more."""
        inside = self.place + n_bytes <= self.end
        require(inside, f"{self.path} is truncated or damaged: its header goes beyond its end; {_AGAIN}")

    def passed(self, n_bytes: int) -> int:
        """The place before so many bytes, which are passed over."""
        self.check_room(n_bytes)
        self.place += n_bytes
        return self.place - n_bytes

    def number(self, kind: str) -> Any:
        place = self.passed(struct.calcsize(kind))
        return struct.unpack_from(kind, self.blob, place)[0]

    def text(self) -> str:
        length = self.number("<Q")
        place = self.passed(length)
        try:
            return self.blob[place : place + length].decode()
        except UnicodeDecodeError as exc:
            raise InputError(f"{self.path} has a text that is not UTF-8 at byte {place + exc.start}; {_AGAIN}") from exc

    def _value_of_any_type(self) -> Any:
        kind = self.number("<I")
        return self._array() if kind == _ARRAY else self._value(kind)

    def _value(self, kind: int) -> Any:
        known = kind in _SCALARS or kind == _STRING
        require(known, f"{self.path} has metadata of the unknown type {kind}; {_AGAIN}, or upgrade astra-mpi")
        return self.text() if kind == _STRING else self.number(_SCALARS[kind])

    def _array(self) -> Any:
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _STRING:
            self.check_room(8 * count)  # each has its length before it
            return [self.text() for _ in range(count)]
        require(kind in _SCALARS, f"{self.path} has an array of unknown type {kind}; {_AGAIN}, or upgrade astra-mpi")
        dtype = np.dtype(_SCALARS[kind])
        place = self.passed(dtype.itemsize * count)
        return np.frombuffer(self.blob[place : self.place], dtype)

    def _entry(self) -> tuple[tuple[int, ...], int, int]:
        n_axes = self.number("<I")
        require(n_axes <= _MOST_AXES, f"{self.path} has a tensor of {n_axes} axes, which GGUF does not have; {_AGAIN}")
        axes = [self.number("<Q") for _ in range(n_axes)]
        return tuple(reversed(axes)), self.number("<I"), self.number("<Q")


def _aligned(path: Path, alignment: Any, place: int) -> int:
    good = type(alignment) is int and 0 < alignment <= 1 << 20 and alignment & (alignment - 1) == 0
    require(good, f"{path}: general.alignment = {alignment!r} is no power of two; {_AGAIN}")
    return -(-place // alignment) * alignment
