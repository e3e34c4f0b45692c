"""Texts, which the model's tokenizer turns into tokens: what their kinds share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from astra_mpi.config import require
from astra_mpi.files.checksum import file_digest
from astra_mpi.files.utf8 import read_text
from astra_mpi.inputs.chat import MESSAGES
from astra_mpi.inputs.kinds import kinds_of, suffixes
from astra_mpi.inputs.kinds.kind import InputKind, Taker, takes_images
from astra_mpi.inputs.pairs import PairRecords, check_single
from astra_mpi.inputs.records import Records, TextOf, Texts
from astra_mpi.inputs.sources import Source, TextSource, TokenSource
from astra_mpi.inputs.text import tokenizer_of

if TYPE_CHECKING:
    from astra_mpi.decks.deck import InputSection


class TextKind(InputKind):
    """Items are texts of a file. A kind adds `records`."""

    kind = "text"
    tokenizes = True

    @classmethod
    def fits(cls, config: Any) -> bool:
        return not takes_images(config)

    @classmethod
    def records(cls, path: Path, columns: Sequence[str], labels: str | None, text_of: TextOf | None = None) -> Texts:
        """The texts of these fields, and the classes of the field `labels`. InputError on what is not there.

        text_of: given only where the kind's `text_of` has made one.
        """
        raise NotImplementedError

    @classmethod
    def text_of(cls, section: InputSection, model: Taker) -> TextOf | None:
        """What makes prompts of messages, where items are such; None: they are texts."""
        require(section.dataset != MESSAGES, f"{section.path}: messages come from .jsonl, an object a line; convert it")
        return None

    @classmethod
    def pairs(cls, path: Path, column: str, pair: str | None, labels: str | None, ranked: bool) -> Texts:
        """As `records`, where an item may be two texts (see `PairRecords`); the texts alone in files without pairs."""
        require(pair is None and not ranked, f"{path}: a {path.suffix} file has no pairs of texts; use .jsonl or .tsv")
        return cls.records(path, (column,), labels)

    @classmethod
    def open(cls, section: InputSection, model: Taker) -> Source:
        path, max_tokens = section.path, model.max_tokens(section)
        prompt, text_of = ("", cls.text_of(section, model)) if model.prompts else (model.prompt, None)
        around = text_of is None  # a chat template spells what it puts around
        size, preprocess, n_types = model.config.vocab_size, model.preprocess, getattr(model.config, "type_vocab", 0)
        tokenizer = tokenizer_of(model.tokenizer, size, model.prompts, preprocess, prompt, around, n_types)
        labelled = suffixes([kind for kind in kinds_of(cls.kind) if kind.labels], " or ")
        require(cls.labels or section.labels is None, f"{path}: a {path.suffix} file has no labels; use {labelled}")
        if section.whole:
            single = section.pair is None and not model.ranked
            require(single, f"{path}: input.whole is one text; pairs come from .jsonl")
            ids = tokenizer.encode([read_text(path)], max_tokens, lambda _: str(path))
            return TokenSource(ids, [np.ones(len(row), dtype=bool) for row in ids], None, file_digest(path))
        if model.pairs:
            column = check_single(section.dataset)
            unlabelled = section.labels is None or not model.ranked
            require(unlabelled, "input.labels is for task.name = 'classify', not for 'rerank'")
            paired = cls.pairs(path, column, section.pair, section.labels, model.ranked)
            return TextSource(paired, tokenizer, max_tokens)
        columns = section.dataset or ("text" if text_of is None else MESSAGES,)
        columns = (columns,) if isinstance(columns, str) else columns
        more = () if text_of is None else (text_of,)
        return TextSource(cls.records(path, columns, section.labels, *more), tokenizer, max_tokens)


class LineKind(TextKind):
    """A row per line. A kind adds `row`."""

    #: whether the first line names the columns
    header: ClassVar[bool] = False

    @classmethod
    def row(cls, where: str, line: str, header: list[str] | None) -> dict[str, Any]:
        """The fields of a line by name. InputError, which begins with `where`."""
        raise NotImplementedError

    @classmethod
    def records(cls, path: Path, columns: Sequence[str], labels: str | None, text_of: TextOf | None = None) -> Texts:
        return Records(path, columns, labels, cls, text_of)

    @classmethod
    def pairs(cls, path: Path, column: str, pair: str | None, labels: str | None, ranked: bool) -> Texts:
        return PairRecords(path, column, pair, labels, ranked, cls)
