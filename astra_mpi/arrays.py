"""Named arrays of .npy, .npz and HDF5 files, read when sliced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from astra_mpi.errors import InputError
from astra_mpi.npz import NpzFile

HDF5_SUFFIXES = (".h5", ".hdf5")


def _open(path: Path) -> Any:
    if path.suffix in HDF5_SUFFIXES:
        return h5py.File(path, "r", locking=False)
    return NpzFile(path) if path.suffix == ".npz" else np.load(path, mmap_mode="r", allow_pickle=False)


class ArrayFile:
    """An open file of arrays. `file.get(name)` -> something with shape and dtype whose slices are arrays.

    InputError if unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix not in (".npy", ".npz", *HDF5_SUFFIXES):
            raise InputError(f"{path}: arrays come from .npy, .npz, .h5 or .hdf5, not from '{path.suffix}'; convert it")
        try:
            self.file: Any = _open(path)
        except FileNotFoundError as exc:
            raise InputError(f"{path} does not exist; check input.path") from exc
        except Exception as exc:  # zipfile, NumPy and HDF5 each raise their own on broken files
            raise self._unreadable(exc) from exc

    def get(self, name: str) -> Any:
        """The array of this name; the only one of a .npy, which has no names. InputError if there is none."""
        if self.path.suffix == ".npy":
            return self.file
        try:
            found = self.file.get(name)
        except InputError:
            raise
        except Exception as exc:
            raise self._unreadable(exc) from exc
        if not hasattr(found, "shape"):
            raise InputError(f"{self.path}: no dataset '{name}', only {', '.join(self._names())}; name it in [input]")
        return found

    def _unreadable(self, exc: Exception) -> InputError:
        return InputError(f"{self.path} cannot be read as {self.path.suffix} ({exc}); is it damaged?")

    def _names(self) -> list[str]:
        if self.path.suffix == ".npz":
            return list(self.file.names)
        names: list[str] = []
        self.file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        return names
