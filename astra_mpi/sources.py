"""Items of a job, handed out in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from astra_mpi.errors import InputError
from astra_mpi.images import Preprocess


class Source(Protocol):
    """Items 0..n_items-1; labels (n_items,) int64 or None; digest: sha256 of the file."""

    n_items: int
    labels: np.ndarray | None
    digest: str

    def batch(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Model inputs and mask of items start..stop-1."""


@dataclass
class TokenSource:
    """Token sequences of uneven length."""

    ids: Sequence[np.ndarray]  # per item (T_i,) integers
    keep: Sequence[np.ndarray]  # per item (T_i,) bool, False = leave the token out
    labels: np.ndarray | None
    digest: str
    n_items: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_items = len(self.ids)

    def batch(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """-> ids int32 (B, T), mask bool (B, T); T = the longest of these items."""
        shape = stop - start, max(len(row) for row in self.ids[start:stop])
        ids, mask = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=bool)
        for i in range(start, stop):
            n = len(self.ids[i])
            ids[i - start, :n], mask[i - start, :n] = self.ids[i], self.keep[i]
        return ids, mask


@dataclass
class ImageSource:
    """Images, read and normalised batch by batch."""

    images: Any  # array or dataset (N, ...)
    preprocess: Preprocess | None  # None: they are float32 and normalised
    path: Path
    labels: np.ndarray | None
    digest: str
    n_items: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_items = len(self.images)

    def batch(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """-> float32 (B, channels, height, width). InputError on a value that is not finite."""
        images = np.asarray(self.images[start:stop])
        if self.preprocess is not None:
            return self.preprocess(images), None
        bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        if bad.size:
            raise InputError(f"{self.path}: image {start + bad[0]} holds NaN or Inf; repair or remove it")
        return images.astype(np.float32, copy=False), None
