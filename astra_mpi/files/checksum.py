"""A checksum of what an HDF5 file says, kept inside it: tells a whole file from one that changed after it was written.

It is taken over contents, not bytes: paths, types, shapes, values and attributes. A copy in another layout keeps it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from astra_mpi.errors import InputError

#: attribute of the root
NAME = "checksum"
#: bytes of a dataset that are read in one go
_CHUNK = 1 << 22
#: deflate packs so many bytes into one at most, and a chunk is unpacked as a whole
DEFLATED, CHUNK_BYTES = 1040, 1 << 26


def file_digest(path: Path) -> str:
    """sha256 of a file of any kind, byte by byte."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents(file: h5py.File) -> str:
    """sha256 over all that is in the file but this attribute.

    Weights and codebooks have checksums of their own beside them (docs/reference/model-file.md), which stand for their
    values. InputError on what no file of ours holds, such as data in other files.
    """
    names = [""]
    file.visit(names.append)
    sha = hashlib.sha256()
    for name in sorted(names):
        item = file[name or "/"]
        if isinstance(item, h5py.Dataset):
            sha.update(f"{json.dumps([name, _kind(item), item.shape])}\n".encode())
            for part in () if _has_own(file, name) else _values(item):
                sha.update(part)
        else:
            sha.update(f"{json.dumps([name, 'group'])}\n".encode())
        for key in sorted(item.attrs):
            if (name, key) != ("", NAME):
                sha.update(_attribute(key, item.attrs[key]))
    return sha.hexdigest()


def fits(file: h5py.File) -> bool | None:
    """Whether the file holds what was written; None where an earlier version wrote it, without a checksum."""
    if NAME not in file.attrs:
        return None
    try:
        return bool(file.attrs[NAME] == contents(file))
    except InputError:
        return False


def require_whole(file: h5py.File, cure: str = "copy it again or make it anew") -> None:
    """InputError if the contents are not those that were written. Files of earlier versions pass."""
    if fits(file) is False:
        raise InputError(f"{file.filename} is damaged or edited (its contents differ from its checksum); {cure}")


def _has_own(file: h5py.File, name: str) -> bool:
    group, _, rest = name.partition("/")
    if group in ("weights", "scales"):  # which the checksum of a weight covers
        weight = file.get(f"weights/{rest}")
        return weight is not None and "sha256" in weight.attrs
    return group == "codec" and "checksum" in file["codec"].attrs


def _kind(item: h5py.Dataset) -> str:
    text = h5py.check_string_dtype(item.dtype)
    return str(item.dtype.str) if text is None or text.length is not None else "text"


def _values(item: h5py.Dataset) -> Iterator[bytes | memoryview]:
    """The bytes of a dataset in order, some rows at a time; texts with their lengths."""
    _check_bounded(item)
    if item.shape == ():
        yield from _packed(np.asarray(item[()]))
        return
    if not item.size:
        return
    step = max(1, _CHUNK * len(item) // max(1, item.nbytes))
    for first in range(0, len(item), step):
        yield from _packed(item[first : first + step])


def _packed(array: np.ndarray) -> Iterator[bytes | memoryview]:
    if array.dtype.kind != "O":
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        return
    for value in array.reshape(-1):
        text = value if isinstance(value, bytes) else str(value).encode(errors="surrogateescape")
        yield b"%d:" % len(text)
        yield text


def _check_bounded(item: h5py.Dataset) -> None:
    """InputError on what takes more memory or time than the file has bytes."""
    text = item.dtype.kind == "O"
    known = item.dtype.kind in "iufbS" or h5py.check_string_dtype(item.dtype) is not None
    if not known or item.shape is None or item.external or item.is_virtual:
        raise InputError(f"{item.file.filename}: {item.name} is not what astra-mpi writes")
    chunk_bytes = int(np.prod(item.chunks or (0,), dtype=object)) * item.dtype.itemsize
    claimed = 0 if text and item.chunks is None else item.nbytes
    if claimed > DEFLATED * item.id.get_storage_size() + 4096 or chunk_bytes > CHUNK_BYTES:
        raise InputError(f"{item.file.filename}: {item.name} claims more than the file holds")


def _attribute(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return f"{json.dumps([key, 'text', value])}\n".encode()
    if isinstance(value, h5py.Empty):
        return f"{json.dumps([key, 'empty'])}\n".encode()
    array = np.asarray(value)
    head = f"{json.dumps([key, array.dtype.str, array.shape])}\n".encode()
    return head + b"".join(bytes(part) for part in _packed(array)) + b"\n"
