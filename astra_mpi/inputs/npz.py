"""Arrays of an .npz file, never read whole: NumPy itself maps .npy files only.

A member that is stored as it is gets mapped at its place in the archive; a compressed one is decompressed as far as it
is asked for, forwards, and from its beginning again when asked to go back.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError

_PIECE_BYTES = 1 << 18  # decompressed in one go: zipfile takes several times as much meanwhile
#: deflate packs so many bytes into one at most; an item is unpacked as a whole
_DEFLATED, ITEM_BYTES = 1040, 1 << 26
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the name, length of the extra field


class NpzFile:
    """An open .npz: `names`, and `get(name)` -> memory map or `PackedArray`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = zipfile.ZipFile(path)
        self.names = [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]

    def get(self, name: str) -> Any:
        """None if there is no such array; zipfile's errors, or ValueError, on a damaged one."""
        if name not in self.names:
            return None
        info = self._zip.getinfo(f"{name}.npy")
        with self._zip.open(info) as member:
            shape, fortran, dtype = _header(member)
            begins = member.tell()
        packings = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may ask for gigabytes to unpack
        require(info.compress_type in packings, f"{self.path}: '{name}' is packed in an unusual way; use np.savez")
        require(not dtype.hasobject, f"{self.path}: '{name}' holds Python objects; give numbers")
        n_bytes = dtype.itemsize * int(np.prod(shape, dtype=object))
        require(info.file_size == begins + n_bytes, f"{self.path}: '{name}' is damaged; copy the file again")
        if info.compress_type == zipfile.ZIP_STORED and n_bytes:
            begins += self._data_start(info)
            return np.memmap(self.path, dtype, "r", begins, shape, "F" if fortran else "C")
        bomb = info.file_size > _DEFLATED * info.compress_size + 4096
        item_bytes = n_bytes // max(1, shape[0] if shape else 1)
        require(not bomb, f"{self.path}: '{name}' claims more bytes than its packed ones can hold; copy the file again")
        require(item_bytes <= ITEM_BYTES, f"{self.path}: an item of '{name}' has {item_bytes} bytes; use np.savez")
        require(
            not fortran or len(shape) < 2,
            f"{self.path}: '{name}' is compressed and in Fortran order; save np.ascontiguousarray of it",
        )
        return PackedArray(self._zip, info, begins, shape, dtype)

    def _data_start(self, info: zipfile.ZipInfo) -> int:
        with self.path.open("rb") as raw:
            raw.seek(info.header_offset)
            signature, n_name, n_extra = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise zipfile.BadZipFile("a member is not where the archive says")
        return int(info.header_offset + _LOCAL_HEADER.size + n_name + n_extra)


class PackedArray:
    """A compressed member (C order): `array[rows]` and `array[rows, columns]`, both slices, decompress these rows."""

    def __init__(
        self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, begins: int, shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)
        self._begins, self._member = begins, archive.open(info)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, *columns = key if isinstance(key, tuple) else (key,)
        wanted = range(*rows.indices(self.shape[0]))
        out = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        if out.size:
            row_bytes = out.nbytes // len(wanted)
            if wanted.step == 1:
                self._read(wanted.start * row_bytes, out)
            else:
                for i, row in enumerate(wanted):
                    self._read(row * row_bytes, out[i : i + 1])
        return out[(slice(None), *columns)]

    def _read(self, offset: int, out: np.ndarray) -> None:
        """The bytes from `offset` of the array on -> out, C-contiguous."""
        offset += self._begins
        if offset < self._member.tell():
            self._member.seek(0)
        while (ahead := offset - self._member.tell()) > 0 and self._member.read(min(ahead, _PIECE_BYTES)):
            pass
        target = out.reshape(-1).view(np.uint8)
        done = 0
        while done < len(target) and (data := self._member.read(min(len(target) - done, _PIECE_BYTES))):
            target[done : done + len(data)] = np.frombuffer(data, np.uint8)
            done += len(data)
        if done < len(target):
            raise InputError(f"{self._member.name}: the archive ends too early; copy it again")


def _header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order, dtype; the stream then stands where the data begins."""
    file: BinaryIO = member
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format")
    return readers[version](file)
