"""[data] of a training deck -> items, in joint batches whose order depends on seed and step only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.decks.deck import InputSection
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.files.utf8 import read_text
from astra_mpi.inputs.kinds import is_running_text
from astra_mpi.inputs.kinds.kind import takes_images
from astra_mpi.inputs.opening import open_input
from astra_mpi.inputs.sources import FileSource, ImageSource, Source
from astra_mpi.inputs.text import tokenizer_of
from astra_mpi.models import FAMILIES
from astra_mpi.models.decoder import Decoder
from astra_mpi.partition import displs, even
from astra_mpi.train.deck import DataSection

#: batches of sequences of similar length are made from so many batches at a time
BUCKET = 32
#: items read at a time
READ = 512


@dataclass(frozen=True)
class Batch:
    """One rank's part of a joint batch."""

    places: np.ndarray  # (B,) of its items in the joint batch
    n_items: int  # of the joint batch
    n_tokens: int  # content tokens of the joint batch
    inputs: np.ndarray  # images (B, channels, height, width) float32, or ids (B, S) int64
    keep: np.ndarray  # (B, S) bool, False: no token; S includes a class token
    labels: np.ndarray | None  # (B,) int64


class Items:
    """All items of a file in memory. `lengths` (n,) are content tokens."""

    n_class: int
    lengths: np.ndarray
    labels: np.ndarray | None
    digest: str

    def __len__(self) -> int:
        return len(self.lengths)

    def inputs(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and keep of items `chosen` (B,)."""
        raise NotImplementedError

    def part(self, joint: np.ndarray, rank: int = 0, size: int = 1) -> Batch:
        """What `rank` of `size` holds of the joint batch of the items `joint` (B,)."""
        ends = displs(even(len(joint), size))
        places = np.arange(ends[rank], ends[rank + 1])
        chosen = joint[places]
        inputs, keep = self.inputs(chosen)
        labels = None if self.labels is None else self.labels[chosen]
        return Batch(places, len(joint), int(self.lengths[joint].sum()), inputs, keep, labels)


class Images(Items):
    """Images of one array, in memory, or of a file each, decoded when they are needed."""

    def __init__(self, source: ImageSource | FileSource, config: Any) -> None:
        self.source, self.n_class, self.digest, self.labels = source, config.n_class, source.digest, source.labels
        self.images = np.asarray(source.images) if isinstance(source, ImageSource) else None
        self.lengths = np.full(source.n_items, config.grid[0] * config.grid[1])

    def inputs(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keep = np.ones((len(chosen), self.n_class + int(self.lengths[0])), bool)
        if self.images is None:
            return np.concatenate([self.source.batch(int(i), int(i) + 1)[0] for i in chosen]), keep
        images, prepare = self.images[chosen], self.source.preprocess
        return images.astype(np.float32) if prepare is None else prepare(images), keep


class Sequences(Items):
    """Token ids in memory, without those that a mask leaves out; the others stay at their own positions.

    A row is ids (T,), or ids and types (T, 2).
    """

    def __init__(
        self,
        rows: list[np.ndarray],
        places: list[np.ndarray],
        n_class: int,
        digest: str,
        labels: np.ndarray | None = None,
    ) -> None:
        self.rows, self.places, self.n_class, self.digest, self.labels = rows, places, n_class, digest, labels
        self.lengths = np.array([len(row) for row in rows], np.int64) - n_class

    def inputs(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width = max(int(self.places[i][-1]) + 1 for i in chosen)
        typed = any(self.rows[i].ndim == 2 for i in chosen)
        ids, keep = np.zeros((len(chosen), width, 2), np.int64), np.zeros((len(chosen), width), bool)
        for row, i in enumerate(chosen):
            keep[row, self.places[i]] = True
            if self.rows[i].ndim == 2:
                ids[row, self.places[i]] = self.rows[i]
            else:
                ids[row, self.places[i], 0] = self.rows[i]
        return (ids if typed else ids[..., 0]), keep


def _sequences(source: Source, path: Path, n_class: int, causal: bool) -> Sequences:
    rows, places = [], []
    for start in range(0, source.n_items, READ):
        ids, keep = source.batch(start, min(start + READ, source.n_items))
        keep = np.ones(ids.shape, bool) if keep is None else keep
        rows += [row[kept] for row, kept in zip(ids, keep, strict=True)]
        places += [np.flatnonzero(kept) for kept in keep]
    items = Sequences(rows, places, n_class, source.digest, source.labels)
    require(bool((items.lengths > causal).all()), f"{path} holds items of too few tokens; remove them")
    whole = all(len(place) == place[-1] + 1 for place in places)
    require(whole or not causal, f"{path}: data.mask leaves out tokens between others; a decoder needs lengths")
    return items


def open_items(section: DataSection, path: Path, model: ModelFile, need_labels: bool) -> Items:
    """The items of one file. InputError, naming file and cure, on what the model cannot take."""
    require(section.max_tokens is None or model.config.family != "vit", "data.max_tokens is for text, not for images")
    decoder = issubclass(FAMILIES[model.config.family], Decoder)
    if decoder and is_running_text(section.kind, path):
        return _windows(section, path, model)
    classes = takes_images(model.config) or getattr(model.config, "pairs", False)
    names = (section.dataset, section.labels if classes else None, section.mask, section.max_tokens)
    pairs = getattr(model.config, "pairs", False)
    opened = model.tokenizer, model.preprocess, model.config
    try:
        source = open_input(InputSection(path, section.kind, *names), *opened, pairs=pairs)
    except InputError as exc:
        raise InputError(str(exc).replace("input.", "data.").replace("[input]", "[data]")) from exc
    known = not need_labels or source.labels is not None
    require(known, f'{path}: data.labels is missing; or use train.loss = "distill"')
    if isinstance(source, ImageSource | FileSource):
        return Images(source, model.config)
    return _sequences(source, path, model.config.n_class, decoder)


def _windows(section: DataSection, path: Path, model: ModelFile) -> Sequences:
    """A running text as windows side by side; what is left at its end is dropped."""
    tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size, preprocess=model.preprocess)
    limit = model.config.max_positions
    window = min(limit, section.max_tokens or (model.preprocess or {}).get("max_tokens", limit))
    text = read_text(path)
    (ids,) = tokenizer.encode([text], max(len(text.encode()) + 2, 1 << 16), lambda _: str(path))
    n = len(ids) // window
    require(n > 0 and window > 1, f"{path} has {len(ids)} tokens, fewer than one window of {window}; give more text")
    rows = list(ids[: n * window].reshape(n, window))
    return Sequences(rows, [np.arange(window)] * n, 0, hash_of(ids))


def hash_of(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def hold_out(n_items: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and of validation items. InputError if either is empty."""
    order = np.random.default_rng([seed, 1]).permutation(n_items)
    n_valid = round(share * n_items)
    require(
        0 < n_valid < n_items, f"data.holdout = {share:g} of {n_items} items leaves none to train or to validate on"
    )
    return np.sort(order[n_valid:]), np.sort(order[:n_valid])


class Order:
    """Which items a step takes: every item at most once an epoch, sequences with others of similar length."""

    def __init__(self, items: np.ndarray, lengths: np.ndarray, batch: int, seed: int) -> None:
        self.items, self.lengths, self.seed = items, lengths, seed
        self.batch = min(batch, len(items))
        self.steps_per_epoch = len(items) // self.batch
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def joint(self, step: int) -> np.ndarray:
        """(B,) items of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[place]

    def _make_epoch(self, epoch: int) -> np.ndarray:
        """(steps, B)."""
        rng = np.random.default_rng([self.seed, 2, epoch])
        items = rng.permutation(self.items)[: self.steps_per_epoch * self.batch]
        if np.ptp(self.lengths) == 0:
            return items.reshape(-1, self.batch)
        chunk = BUCKET * self.batch
        parts = [items[a : a + chunk] for a in range(0, len(items), chunk)]
        ordered = [part[np.argsort(self.lengths[part], kind="stable")] for part in parts]
        return rng.permutation(np.concatenate(ordered).reshape(-1, self.batch))
