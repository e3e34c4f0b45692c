"""[input] of a deck -> items in input order. One rank reads; nobody else needs the file."""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.decks.deck import InputSection
from astra_mpi.decks.input_kinds import INPUTS
from astra_mpi.errors import InputError
from astra_mpi.inputs.kinds import is_running_text, kind_of, kinds_of, suffixes, words_for
from astra_mpi.inputs.kinds.kind import Taker
from astra_mpi.inputs.sources import Source


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
    pairs: an item may be two texts. ranked: every item must be two, and the source has `queries`.
    InputError, naming file and cure, on what the model cannot take.
    """
    word, path, takes = section.kind, section.path, words_for(config)
    require(word in takes, f"input.kind = '{word}' does not fit a {config.family} model; give {' or '.join(takes)}")
    kinds = kinds_of(word)
    texts = " or ".join(f"'{name}'" for name in takes if any(kind.tokenizes for kind in kinds_of(name)))
    tokenizes = any(kind.tokenizes for kind in kinds)
    require(not prompt or tokenizes, f"task.prompt is for input.kind = {texts} only")
    masked = " or ".join(f"'{name}'" for name in takes if any(kind.masks for kind in kinds_of(name)))
    require(section.mask is None or any(k.masks for k in kinds), f"input.mask is for input.kind = {masked} only")
    require(
        section.pair is None or (pairs and tokenizes),
        "input.pair is for input.kind = 'text' and task.name = 'classify' or 'rerank', of a model with a classifier",
    )
    require(not ranked or tokenizes, f"task.name = 'rerank' takes pairs of texts; give input.kind = {texts}")
    kind = kind_of(word, path)
    require(
        path.is_file() or (kind is not None and path.is_dir()),
        f"{path} does not exist or is no file; check input.path",
    )
    running = suffixes([kind for kind in INPUTS.values() if kind.running_text])
    require(not section.whole or is_running_text(word, path), f"input.whole is for {running} files only")
    if kind is None:
        raise InputError(f"{path}: {word} comes from {suffixes(kinds)}, not from '{path.suffix}'; convert it")
    source = kind.open(section, Taker(config, tokenizer, preprocess, prompts, prompt, pairs, ranked))
    require(source.n_items > 0, f"{path} holds no items")
    _check_labels(source, section, config)
    return source


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
