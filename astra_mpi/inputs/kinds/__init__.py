"""The input kinds, one class each: what is read from which file or folder. `astra_mpi.decks.input_kinds` is their
table; nothing outside a kind's file asks for it by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from astra_mpi.decks.input_kinds import INPUTS

if TYPE_CHECKING:
    from astra_mpi.inputs.kinds.kind import InputKind


def kinds_of(word: str) -> list[type[InputKind]]:
    """The kinds that are `input.kind = word`."""
    return [kind for kind in INPUTS.values() if kind.kind == word]


def kind_of(word: str, path: Path) -> type[InputKind] | None:
    """The kind of a file or folder; None if `word` is read from others."""
    return next((kind for kind in kinds_of(word) if kind.reads(path)), None)


def words_for(config: Any) -> list[str]:
    """The values of `input.kind` that fit a model."""
    return list(dict.fromkeys(kind.kind for kind in INPUTS.values() if kind.fits(config)))


def word_for(path: Path, config: Any) -> str:
    """`input.kind` of a file for a model: by what reads it, else the last that fits."""
    words = words_for(config)
    return next((word for word in words if kind_of(word, path)), words[-1])


def is_running_text(word: str, path: Path) -> bool:
    """Whether the file may be read as one text."""
    kind = kind_of(word, path)
    return kind is not None and kind.running_text


def suffixes(kinds: list[type[InputKind]], last: str = ", ") -> str:
    """The file names that they read, for messages."""
    return last.join(dict.fromkeys(suffix for kind in kinds for suffix in kind.suffixes))
