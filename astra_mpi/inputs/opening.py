"""[input] of a deck -> items in input order. One rank reads; nobody else needs the file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.decks.deck import InputSection
from astra_mpi.errors import InputError
from astra_mpi.inputs.arrays import ArrayFile
from astra_mpi.inputs.image_folder import decoder, folder_digest, image_files, read_labels
from astra_mpi.inputs.pairs import PairRecords, check_single
from astra_mpi.inputs.records import Records
from astra_mpi.inputs.sources import ArraySource, FileSource, ImageSource, Source, TextSource, TokenSource
from astra_mpi.inputs.text import Tokenizer, read_text, tokenizer_of
from astra_mpi.models.images import Preprocess


def open_input(
    section: InputSection,
    tokenizer: str | None,
    preprocess: dict[str, Any] | None,
    config: Any,
    prompts: bool = False,
    prompt: str | bool | None = None,
    pairs: bool = False,
    ranked: bool = False,
) -> Source:
    """The items of [input] for a model of this (family's) config, tokenizer and image preprocessing.

    prompts: texts are to be gone on with, so that no token ends them, and only input.max_tokens cuts them.
    prompt: is put before texts: None, the model's default one; one of its names; False or "", none.
    pairs: items may be two texts, for a model whose answer is about both. ranked: they all are, and are numbered by the
    first. InputError, naming file and cure, on what the model cannot take.
    """
    takes = ("images",) if hasattr(config, "image_size") else ("text", "tokens")
    require(
        section.kind in takes,
        f"input.kind = '{section.kind}' does not fit a {config.family} model; give {' or '.join(takes)}",
    )
    require(not prompt or section.kind == "text", "task.prompt is for input.kind = 'text' only")
    require(section.mask is None or section.kind == "tokens", "input.mask is for input.kind = 'tokens' only")
    folder = section.kind == "images" and section.path.is_dir()
    require(folder or section.path.is_file(), f"{section.path} does not exist or is no file; check input.path")
    require(not section.whole or section.path.suffix == ".txt", "input.whole is for .txt files only")
    require(
        section.pair is None or (section.kind == "text" and (pairs or ranked)),
        "input.pair is for input.kind = 'text' and task.name = 'classify' or 'rerank', of a model with a classifier",
    )
    require(not ranked or section.kind == "text", "task.name = 'rerank' takes pairs of texts; give input.kind = 'text'")
    if section.kind == "images":
        source = (_open_folder if folder else _open_images)(section, preprocess, config)
    else:
        max_tokens = _max_tokens(section, preprocess, config, prompts)
        if section.kind == "tokens":
            source = _open_tokens(section, max_tokens, config)
        else:
            before, n_types = "" if prompts else prompt, getattr(config, "type_vocab", 0)
            fast = tokenizer_of(tokenizer, config.vocab_size, prompts, preprocess, before, n_types)
            source = _open_pairs(section, fast, max_tokens, ranked) if pairs else _open_text(section, fast, max_tokens)
    require(source.n_items > 0, f"{section.path} holds no items")
    _check_labels(source, section, config)
    return source


def _open_text(section: InputSection, tokenizer: Tokenizer, max_tokens: int) -> Source:
    columns = section.dataset or ("text",)
    columns = (columns,) if isinstance(columns, str) else columns
    if not section.whole:
        return TextSource(Records(section.path, columns, section.labels), tokenizer, max_tokens)
    require(section.labels is None, f"{section.path}: a .txt file has no labels; use .jsonl or .tsv")
    ids = tokenizer.encode([read_text(section.path)], max_tokens, lambda _: str(section.path))
    return TokenSource(ids, [np.ones(len(row), dtype=bool) for row in ids], None, _sha256(section.path))


def _open_pairs(section: InputSection, tokenizer: Tokenizer, max_tokens: int, ranked: bool) -> Source:
    """Texts, or pairs of texts."""
    if section.whole:
        require(not ranked and section.pair is None, f"{section.path}: input.whole is one text; pairs come from .jsonl")
        return _open_text(section, tokenizer, max_tokens)
    column = check_single(section.dataset)
    require(not ranked or section.labels is None, "input.labels is for task.name = 'classify', not for 'rerank'")
    records = PairRecords(section.path, column, section.pair, section.labels, ranked)
    return TextSource(records, tokenizer, max_tokens)


def _open_tokens(section: InputSection, max_tokens: int, config: Any) -> Source:
    file = ArrayFile(section.path)
    ids = file.get(_dataset(section))
    require(
        len(ids.shape) == 2 and ids.dtype.kind in "iu",
        f"{section.path}: token ids are {ids.dtype} of shape {ids.shape}; give integers (items, tokens)",
    )
    n_items, n_tokens = ids.shape
    mask = None
    if section.mask is not None:
        mask = file.get(section.mask)
        require(mask.shape in ((n_items, n_tokens), (n_items,)), _mask_words(section, mask, n_items, n_tokens))
    cut = min(n_tokens, max_tokens)
    source = ArraySource(ids, mask, cut, _labels(file, section, n_items), _sha256(section.path))
    source.check(section.path, config.vocab_size)
    return source


def _mask_words(section: InputSection, mask: Any, n_items: int, n_tokens: int) -> str:
    return (
        f"{section.path}: '{section.mask}' has shape {mask.shape}; give ({n_items}, {n_tokens}), 0 = leave the token "
        f"out, or ({n_items},) lengths"
    )


def _open_images(section: InputSection, preprocess: dict[str, Any] | None, config: Any) -> Source:
    file = ArrayFile(section.path)
    images = file.get(_dataset(section))
    shape, height_width = images.shape, tuple(config.image_size)
    if images.dtype == np.uint8 and len(shape) in (3, 4):
        channels = shape[3] if len(shape) == 4 else 1
        require(
            preprocess is not None,
            f"{section.path}: uint8 images need the model's preprocessing, and its file has none; give float32 "
            f"(items, {config.channels}, {height_width[0]}, {height_width[1]}) already normalised",
        )
        prepare = Preprocess(**(preprocess or {}))
    else:
        require(
            images.dtype.kind == "f" and len(shape) == 4,
            f"{section.path}: images are {images.dtype} of shape {shape}; give uint8 (items, height, width, channels) "
            "or grey (items, height, width), or float32 (items, channels, height, width) already normalised",
        )
        channels, prepare = shape[1], None
        require(
            shape[2:] == height_width,
            f"{section.path}: float images are {shape[2]} x {shape[3]}, the model takes {height_width[0]} x "
            f"{height_width[1]}; give uint8 images, which are resized",
        )
    require(
        channels == config.channels if prepare is None else prepare.takes(channels),
        f"{section.path}: images have {channels} channels, the model takes {config.channels}; convert the images",
    )
    return ImageSource(images, prepare, section.path, _labels(file, section, shape[0]), _sha256(section.path))


def _open_folder(section: InputSection, preprocess: dict[str, Any] | None, config: Any) -> Source:
    require(section.dataset is None, f"{section.path} is a folder of images, which have no dataset; drop input.dataset")
    if preprocess is None:
        raise InputError(
            f"{section.path}: image files need the model's preprocessing, and its file has none; give arrays"
        )
    prepare, paths = Preprocess(**preprocess), image_files(section.path)
    labels, files = None, paths
    if section.labels is not None:
        labels = read_labels(section.path, section.labels, paths)
        files = [*paths, section.path / section.labels]
    return FileSource(paths, decoder(config.channels, prepare.rgb), prepare, labels, folder_digest(section.path, files))


def _dataset(section: InputSection) -> str:
    name = section.dataset or section.kind
    if not isinstance(name, str):
        raise InputError(f"input.dataset: a list of names is for .tsv and .jsonl text; {section.path} takes one name")
    return name


def _max_tokens(section: InputSection, preprocess: dict[str, Any] | None, config: Any, prompts: bool) -> int:
    """The deck's, else what the model is meant for, else all its positions; of prompts one more, to find long ones."""
    limit: int = config.max_positions
    if section.max_tokens is None:
        if prompts:
            return limit + 1
        return min(limit, (preprocess or {}).get("max_tokens", limit))
    wanted = section.max_tokens
    require(wanted <= limit, f"input.max_tokens = {wanted} is more than this model's {limit} positions; lower it")
    return wanted


def _labels(file: ArrayFile, section: InputSection, n_items: int) -> np.ndarray | None:
    if section.labels is None:
        return None
    require(file.path.suffix != ".npy", f"{file.path}: a .npy file has no labels; use .npz or HDF5")
    labels = file.get(section.labels)
    require(
        labels.shape == (n_items,) and labels.dtype.kind in "iu",
        f"{file.path}: '{section.labels}' is {labels.dtype} of shape {labels.shape}; give integers ({n_items},)",
    )
    return np.asarray(labels[:]).astype(np.int64)


def _check_labels(source: Source, section: InputSection, config: Any) -> None:
    n_classes = getattr(config, "n_classes", 0)
    if source.labels is None or not n_classes:
        return
    bad = np.flatnonzero((source.labels < 0) | (source.labels >= n_classes))
    if bad.size:
        raise InputError(
            f"{section.path}: label {source.labels[bad[0]]} (item {bad[0]}) is outside 0..{n_classes - 1}, this "
            "model's classes"
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
