"""HDF5 with care: read files are checked before they are trusted, written ones appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.files import checksum, whole
from astra_mpi.files.checksum import CHUNK_BYTES, DEFLATED
from astra_mpi.files.heaps import endless
from astra_mpi.files.shield import Shield
from astra_mpi.files.stuck import bounded

MODEL, CODEBOOKS, RESULTS = "astra-mpi", "astra-mpi-codebooks", "astra-mpi-results"
FORMATS = {MODEL: "a model file", CODEBOOKS: "a codebook file", RESULTS: "a results file"}
VERSION = 1

#: what h5py raises on damaged files, depending on where the damage is
_H5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)


@contextmanager
def reading(path: str | Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading. InputError if it is missing, no HDF5 file, truncated or damaged.

    An InputError of the body is given the file's name if it lacks it.
    """
    path = Path(path)
    _check_file(path)
    try:
        # finished files never change, and locks fail on many network file systems
        with bounded(str(path)), h5py.File(path, "r", locking=False) as file:
            yield file
    except InputError as exc:
        if str(path) in str(exc):
            raise
        raise InputError(f"{path}: {exc}") from exc
    except _H5_ERRORS as exc:
        state = "truncated" if "truncated" in str(exc) else "damaged"
        raise InputError(f"{path} is {state} ({exc}); copy it again or make it anew") from exc


def _check_file(path: Path) -> None:
    require(not path.is_dir(), f"{path} is a folder; give an HDF5 file (`astra-mpi convert` makes one of a folder)")
    require(path.is_file() or not path.exists(), f"{path} is a pipe or a device; give an ordinary file")
    try:
        with path.open("rb") as raw:
            empty = not raw.read(1)
    except FileNotFoundError as exc:
        raise InputError(f"{path} does not exist; check the path") from exc
    except OSError as exc:
        raise InputError(f"{path} cannot be read ({exc.strerror}); check its permissions") from exc
    require(not empty, f"{path} is empty; copy it again or make it anew")
    require(h5py.is_hdf5(path), f"{path} is not an HDF5 file; give a file made by astra-mpi")
    check_heaps(path)


def check_heaps(path: Path) -> None:
    """InputError if the library would never return from reading the texts of this file."""
    where = endless(path)
    require(where is None, f"{path} is damaged (its texts, at byte {where}); copy it again or make it anew")


def check_format(file: h5py.File, wanted: str) -> None:
    """InputError unless the file says that it is of format `wanted` and of a version that this program reads."""
    found = file.attrs.get("format")
    if not isinstance(found, str) or found not in FORMATS:
        raise InputError(f"{file.filename} is HDF5, but no file of astra-mpi; `astra-mpi convert` or `init` makes one")
    require(found == wanted, f"{file.filename} is {FORMATS.get(found)}; give {FORMATS[wanted]}")
    version = integer(file, "version")
    require(
        version <= VERSION,
        f"{file.filename} has format version {version}, this program reads up to {VERSION}; upgrade astra-mpi",
    )


def text(item: Any, name: str) -> str:
    """The string attribute `name` of a file, group or dataset; InputError if there is none."""
    value = item.attrs.get(name)
    if not isinstance(value, str):
        raise InputError(f"{item.file.filename}: {item.name} has no text attribute '{name}'; make the file anew")
    return value


def integer(item: Any, name: str) -> int:
    """The integer attribute `name`; InputError if there is none."""
    value = item.attrs.get(name)
    if not isinstance(value, int | np.integer):
        raise InputError(f"{item.file.filename}: {item.name} has no integer attribute '{name}'; make the file anew")
    return int(value)


def integers(item: Any, name: str) -> np.ndarray:
    """The attribute `name`, an integer or an array of them in one or two dimensions; InputError if there is none."""
    value = np.asarray(item.attrs.get(name, ""))
    if not np.issubdtype(value.dtype, np.integer) or value.ndim > 2 or (value.ndim and not value.size):
        raise InputError(f"{item.file.filename}: {item.name} has no integer attribute '{name}'; make the file anew")
    return value.astype(np.int64)


def number(item: Any, name: str) -> float:
    """The floating-point attribute `name`; InputError if there is none."""
    value = item.attrs.get(name)
    if not isinstance(value, float):  # np.float64 is one
        raise InputError(f"{item.file.filename}: {item.name} has no number attribute '{name}'; make the file anew")
    return float(value)


def _member(parent: h5py.Group, name: str) -> Any:
    """The object `name` of a group; InputError if it is missing or a link to another place or file."""
    where = f"{parent.file.filename}: {parent.name.rstrip('/')}/{name}"
    link = parent.get(name, getlink=True)
    require(link is not None, f"{where} is missing; make the file anew")
    require(isinstance(link, h5py.HardLink), f"{where} is a link to another place; copy the data itself into the file")
    return parent[name]


def group(parent: h5py.Group, name: str) -> h5py.Group:
    """A sub-group; InputError if it is missing, a link or no group."""
    item = _member(parent, name)
    require(isinstance(item, h5py.Group), f"{parent.file.filename}: {item.name} is not a group; make the file anew")
    return item


def dataset(parent: h5py.Group, name: str, dtypes: tuple[str, ...]) -> h5py.Dataset:
    """A dataset, not read yet, of one of `dtypes`, whose data lies in this file byte for byte.

    Its memory is therefore bounded by the size of the file. InputError on links, external storage, virtual,
    chunked, compressed or unwritten datasets and on other dtypes.
    """
    item = _own(parent, name)
    where = f"{parent.file.filename}: {item.name}"
    allowed = " or ".join(dtypes)
    require(item.dtype in [np.dtype(d) for d in dtypes], f"{where} is {item.dtype}; it must be {allowed}")
    return _in_place(item)


def stored(parent: h5py.Group, name: str) -> h5py.Dataset:
    """As `dataset`, of any dtype of numbers or text."""
    item = _own(parent, name)
    known = item.dtype.kind in "iufb" or h5py.check_string_dtype(item.dtype) is not None
    require(known, f"{parent.file.filename}: {item.name} is {item.dtype}; it must be numbers or text")
    return _in_place(item)


def _in_place(item: h5py.Dataset) -> h5py.Dataset:
    where = f"{item.file.filename}: {item.name}"
    require(item.chunks is None, f"{where} is stored in chunks; rewrite the file with `h5repack -l CONTI -f NONE`")
    has_data = item.dtype.kind == "O" or item.id.get_storage_size() == item.nbytes  # text lies elsewhere in the file
    require(item.shape is not None and has_data, f"{where} has no data; make it anew")
    return item


def table(file: h5py.File, name: str) -> h5py.Dataset | None:
    """A dataset of numbers as users store them, in chunks and compressed too; None if there is none of this name.

    InputError on links on the way, data in other files, Python objects, and on what unpacks to more than deflate can
    have packed: shapes without data and compression bombs.
    """
    parent: Any = file
    *path, leaf = [part for part in name.split("/") if part]
    for part in path:
        parent = group(parent, part) if part in parent else {}
    link = parent.get(leaf, getlink=True) if parent else None
    if link is None or (isinstance(link, h5py.HardLink) and not isinstance(parent[leaf], h5py.Dataset)):
        return None
    item = _own(parent, leaf)
    where = f"{file.filename}: {item.name}"
    require(item.dtype.kind in "iufb", f"{where} is {item.dtype}; give numbers")
    require(item.shape is not None and len(item.shape) > 0, f"{where} has no items; give an array")
    size = item.id.get_storage_size()
    require(item.nbytes <= DEFLATED * size + 4096, f"{where} claims {item.nbytes} bytes and has {size}; write it anew")
    chunk_bytes = int(np.prod(item.chunks or (0,), dtype=object)) * item.dtype.itemsize
    require(chunk_bytes <= CHUNK_BYTES, f"{where} has chunks of {chunk_bytes} bytes; rewrite it with smaller ones")
    return item


def _own(parent: h5py.Group, name: str) -> h5py.Dataset:
    """A dataset that is in this file, and its data too."""
    item = _member(parent, name)
    where = f"{parent.file.filename}: {item.name}"
    require(isinstance(item, h5py.Dataset), f"{where} is not a dataset; make the file anew")
    require(not item.external and not item.is_virtual, f"{where} keeps its data in other files; copy it into this one")
    return item


def read(item: h5py.Dataset, dtype: str) -> np.ndarray:
    """The whole of a checked dataset as `dtype`, C-contiguous."""
    array = np.empty(item.shape, dtype)
    if array.size:
        item.read_direct(array)
    return array


class Written(h5py.File):
    """An HDF5 file while it is written. The library never learns of a write that fails; `check` tells."""

    def __init__(self, path: Path, shield: Shield, **options: Any) -> None:
        super().__init__(path, "w", driver="fileobj", fileobj=shield, **options)
        self._shield = shield

    def check(self) -> None:
        """Raise what a write so far has failed with; ask now and then where much is written."""
        self._shield.check()


@contextmanager
def writing(path: str | Path, aligned: bool = False) -> Iterator[Written]:
    """Create an HDF5 file under a temporary name; flushed to disk and renamed to `path` when the body succeeds.

    `aligned`: datasets of a page or more begin at pages, to be mapped. A checksum of the contents is added.
    After a failure nothing is left and an older file at `path` is untouched. InputError if the folder is missing,
    AstraError if the file cannot be written.
    """
    path = Path(path)
    _check_name(path)
    # the 1.8 layout allows attributes over 64 KB (long lists of labels); any HDF5 since 2008 reads it
    options: dict[str, Any] = {"alignment_threshold": 1 << 12, "alignment_interval": 1 << 12} if aligned else {}
    options |= {"libver": ("v108", "v108")}
    with whole.writing(path) as raw, Shield(raw) as shield, Written(path, shield, **options) as file:
        yield file
        file.check()
        file.attrs[checksum.NAME] = checksum.contents(file)


def check_target(path: str | Path) -> None:
    """InputError, before the work, if no file can be written at `path`."""
    path = Path(path)
    _check_name(path)
    require(os.access(path.parent, os.W_OK), f"the folder {path.parent} cannot be written; choose another output")


def _check_name(path: Path) -> None:
    require(path.parent.is_dir(), f"the folder {path.parent} does not exist; create it or choose another output")
    require(not path.is_dir(), f"{path} is a folder; choose another name for the output")
    require(whole.is_ordinary(path), f"{path} is a pipe, a device or an open file; HDF5 needs an ordinary file")
