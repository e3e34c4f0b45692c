"""Items that are rows of an array in a .npy, .npz or HDF5 file: what their kinds share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.inputs.arrays import SUFFIXES, ArrayFile
from astra_mpi.inputs.kinds.kind import InputKind

if TYPE_CHECKING:
    from astra_mpi.decks.deck import InputSection


class ArrayKind(InputKind):
    """One array, named by `input.dataset`, and one of classes."""

    suffixes = SUFFIXES

    @classmethod
    def dataset(cls, section: InputSection) -> str:
        """The array's name."""
        name = section.dataset or cls.kind
        if not isinstance(name, str):
            raise InputError(
                f"input.dataset: a list of names is for .tsv and .jsonl text; {section.path} takes one name"
            )
        return name

    @staticmethod
    def classes(file: ArrayFile, section: InputSection, n_items: int) -> np.ndarray | None:
        """(n_items,) int64, or None where no array is named."""
        if section.labels is None:
            return None
        require(file.path.suffix != ".npy", f"{file.path}: a .npy file has no labels; use .npz or HDF5")
        labels = file.get(section.labels)
        require(
            labels.shape == (n_items,) and labels.dtype.kind in "iu",
            f"{file.path}: '{section.labels}' is {labels.dtype} of shape {labels.shape}; give integers ({n_items},)",
        )
        return np.asarray(labels[:]).astype(np.int64)
