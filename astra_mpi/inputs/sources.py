"""Items of a job, handed out in batches and read batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.inputs.pairs import PairRecords
from astra_mpi.inputs.records import Texts
from astra_mpi.inputs.text import Tokenizer
from astra_mpi.models.images import Preprocess

#: bytes of an array that are looked at in one go
_BLOCK_BYTES = 4 << 20


class Source(Protocol):
    """Items 0..n_items-1; labels (n_items,) int64 or None; digest: sha256 of what was read."""

    n_items: int
    labels: np.ndarray | None
    digest: str

    def batch(self, start: int, stop: int, step: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
        """Model inputs and mask of items range(start, stop, step)."""


@dataclass
class TokenSource:
    """Token sequences of uneven length, in memory."""

    ids: Sequence[np.ndarray]  # per item (T_i,) integers
    keep: Sequence[np.ndarray]  # per item (T_i,) bool, False = leave the token out
    labels: np.ndarray | None
    digest: str
    n_items: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_items = len(self.ids)

    def batch(self, start: int, stop: int, step: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
        """-> ids int32 (B, T), mask bool (B, T); T = the longest of these items."""
        return padded(self.ids[start:stop:step], self.keep[start:stop:step])


def padded(rows: Sequence[np.ndarray], keep: Sequence[np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of tokens (T_i,) -> ids int32 (B, T), mask bool (B, T), True where `keep` has it (default everywhere).

    Of rows (T_i, 2), ids with their types, (B, T, 2)."""
    shape = len(rows), max(len(row) for row in rows)
    ids, mask = np.zeros((*shape, *rows[0].shape[1:]), dtype=np.int32), np.zeros(shape, dtype=bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True if keep is None else keep[i]
    return ids, mask


class TextSource:
    """Texts of a file, or pairs of texts, turned into tokens batch by batch, cut to `max_tokens`."""

    def __init__(self, records: Texts, tokenizer: Tokenizer, max_tokens: int) -> None:
        tokenizer.check_room(max_tokens)
        self.records, self.tokenizer, self.max_tokens = records, tokenizer, max_tokens
        self.n_items, self.labels, self.digest = records.n_items, records.labels, records.digest

    def batch(self, start: int, stop: int, step: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
        """-> ids int32 (B, T), or ids and types (B, T, 2), mask bool (B, T); T = the longest of these items."""
        items = range(start, stop, step)
        texts = self.records.texts(items)

        def name(i: int) -> str:
            return f"{self.records.path}: item {items[i]}"

        return padded(self.tokenizer.encode_typed(texts, self.max_tokens, name))

    def queries(self, items: range) -> np.ndarray:
        """(B,) int64: numbers of the first texts of pairs, equal ones alike."""
        assert isinstance(self.records, PairRecords) and self.records.queries is not None
        return self.records.queries[items.start : items.stop : items.step]


@dataclass
class ArraySource:
    """Token ids (N, >= n_tokens) of a file, of which the first `n_tokens` of an item are used."""

    ids: Any  # array or dataset (N, ..) integers
    mask: Any | None  # array or dataset (N, ..), 0 = leave the token out; or (N,) lengths
    n_tokens: int
    labels: np.ndarray | None
    digest: str
    n_items: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_items = len(self.ids)

    def batch(self, start: int, stop: int, step: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
        """-> ids int32 (B, n_tokens), mask bool (B, n_tokens). A dropped id is given too, if it can be one: families
        whose positions do not count padding look at it."""
        ids, keep = self._read(slice(start, stop, step))
        return np.where(keep | ((ids >= 0) & (ids < 1 << 31)), ids, 0).astype(np.int32), keep

    def check(self, path: Path, vocab_size: int) -> None:
        """InputError names the first kept token id that is not in 0..vocab_size-1; all are read, a block at a time."""
        rows = max(1, _BLOCK_BYTES // max(1, self.n_tokens * self.ids.dtype.itemsize))
        for start in range(0, self.n_items, rows):
            ids, keep = self._read(slice(start, start + rows))
            bad = np.argwhere(keep & ((ids < 0) | (ids >= vocab_size)))
            if bad.size:
                i, t = bad[0]
                raise InputError(
                    f"{path}: token id {ids[i, t]} (item {start + i}, position {t}) is outside 0..{vocab_size - 1}; "
                    "was another tokenizer used?"
                )

    def _read(self, items: slice) -> tuple[np.ndarray, np.ndarray]:
        """ids and keep (B, n_tokens)"""
        ids = np.asarray(self.ids[items, : self.n_tokens])
        if self.mask is None:
            return ids, np.ones(ids.shape, dtype=bool)
        if len(self.mask.shape) == 2:
            return ids, np.asarray(self.mask[items, : self.n_tokens]) != 0
        return ids, np.arange(self.n_tokens) < np.asarray(self.mask[items])[:, None]


@dataclass
class ImageSource:
    """Images of one array, read and normalised batch by batch."""

    images: Any  # array or dataset (N, ...)
    preprocess: Preprocess | None  # None: they are float32 and normalised
    path: Path
    labels: np.ndarray | None
    digest: str
    n_items: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_items = len(self.images)

    def batch(self, start: int, stop: int, step: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
        """-> float32 (B, channels, height, width). InputError on a value that is not finite."""
        images = np.asarray(self.images[start:stop:step])
        if self.preprocess is not None:
            return self.preprocess(images), None
        bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        if bad.size:
            raise InputError(f"{self.path}: image {start + step * bad[0]} holds NaN or Inf; repair or remove it")
        return images.astype(np.float32, copy=False), None


@dataclass
class FileSource:
    """Images of a file each, decoded and normalised batch by batch."""

    paths: Sequence[Path]
    decode: Callable[[Path], np.ndarray]  # -> uint8 (height, width, channels)
    preprocess: Preprocess
    labels: np.ndarray | None
    digest: str
    n_items: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_items = len(self.paths)

    def batch(self, start: int, stop: int, step: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
        """-> float32 (B, channels, height, width). InputError on a file that is no image."""
        images = [self.preprocess(self.decode(path)[None]) for path in self.paths[start:stop:step]]
        return np.concatenate(images), None


class Excerpt:
    """Every `step`-th item of another source, from `start` on up to `stop`."""

    def __init__(self, source: Source, items: range) -> None:
        require(items.step > 0 and items.stop <= source.n_items, f"{items} of {source.n_items} items")
        self.source, self.items = source, items
        self.n_items, self.digest = len(items), source.digest
        self.labels = None if source.labels is None else source.labels[items.start : items.stop : items.step]

    def batch(self, start: int, stop: int, step: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
        items = self.items[start:stop:step]
        return self.source.batch(items.start, items.stop, items.step)

    def queries(self, items: range) -> np.ndarray:
        """As those of a `TextSource` of pairs."""
        assert isinstance(self.source, TextSource | Excerpt)
        return self.source.queries(self.items[items.start : items.stop : items.step])
