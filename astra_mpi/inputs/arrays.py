"""Named arrays of .npy, .npz and HDF5 files, read when sliced."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from astra_mpi.errors import InputError
from astra_mpi.files import hdf5
from astra_mpi.files.stuck import bounded
from astra_mpi.inputs.npz import NpzFile

HDF5_SUFFIXES = (".h5", ".hdf5")
SUFFIXES = (".npy", ".npz", *HDF5_SUFFIXES)


def _open(path: Path) -> Any:
    if path.suffix in HDF5_SUFFIXES:
        hdf5.check_heaps(path)
        with bounded(str(path)):
            return h5py.File(path, "r", locking=False)
    return NpzFile(path) if path.suffix == ".npz" else np.load(path, mmap_mode="r", allow_pickle=False)


class ArrayFile:
    """An open file of arrays. `file.get(name)` -> something with shape and dtype whose slices are arrays.

    InputError if unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix not in SUFFIXES:
            raise InputError(f"{path}: arrays come from .npy, .npz, .h5 or .hdf5, not from '{path.suffix}'; convert it")
        try:
            self.file: Any = _open(path)
        except FileNotFoundError as exc:
            raise InputError(f"{path} does not exist; check input.path") from exc
        except InputError:
            raise
        except Exception as exc:  # zipfile, NumPy and HDF5 each raise their own on broken files
            raise self.unreadable(exc) from exc

    def get(self, name: str) -> Any:
        """The array of this name; the only one of a .npy, which has no names. InputError if there is none."""
        if self.path.suffix == ".npy":
            return self.file
        try:
            found = self._table(name) if self.path.suffix in HDF5_SUFFIXES else self.file.get(name)
        except InputError:
            raise
        except Exception as exc:
            raise self.unreadable(exc) from exc
        if found is None:
            raise InputError(f"{self.path}: no dataset '{name}', only {', '.join(self._names())}; name it in [input]")
        return found

    def _table(self, name: str) -> Table | None:
        with bounded(str(self.path)):
            item = hdf5.table(self.file, name)
        return None if item is None else Table(self, item)

    def unreadable(self, exc: Exception) -> InputError:
        return InputError(f"{self.path} cannot be read as {self.path.suffix} ({exc}); is it damaged?")

    def _names(self) -> list[str]:
        if self.path.suffix == ".npz":
            return list(self.file.names)
        names: list[str] = []
        # a damaged file: as many as can be found
        with suppress(RuntimeError, KeyError, OSError), bounded(str(self.path)):
            self.file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        return names


class Table:
    """A dataset of an HDF5 file; InputError where its data turn out to be damaged."""

    def __init__(self, file: ArrayFile, item: h5py.Dataset) -> None:
        self._file, self._item = file, item
        self.shape, self.dtype, self.ndim = item.shape, item.dtype, item.ndim

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            with bounded(str(self._file.path)):
                return np.asarray(self._item[key])
        except (OSError, RuntimeError, ValueError) as exc:
            raise self._file.unreadable(exc) from exc

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[...].astype(dtype or self.dtype, copy=False)
