"""Text items and their classes, from files with a row per line: one field of each, or several.

A file is read through once when it is opened: every line is checked, and where it begins is kept. Afterwards lines are
read when they are asked for, so that memory holds 8 bytes per line (16 with labels), not the text.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.files.utf8 import undecodable

#: bytes of the longest line that is read
LONGEST_LINE = 16 << 20
#: where a field stands, and what it holds -> a text; InputError
TextOf = Callable[[str, Any], str]
#: field of the second text of a pair
PAIR = "text_pair"


class Texts(Protocol):
    """Numbered texts of a file; labels (n_items,) int64 or None; digest: sha256 of the file."""

    path: Path
    n_items: int
    labels: np.ndarray | None
    digest: str

    def texts(self, items: range) -> list[Any]:
        """The texts of these items; of a pair, both."""


class Lines(Protocol):
    """What a line of a file holds."""

    header: bool  # whether the first line names the columns

    def row(self, where: str, line: str, header: list[str] | None) -> dict[str, Any]:
        """The fields of a line by name. InputError, which begins with `where`."""


class Records:
    """The rows of a text file; every column of every row is an item, row after row. Empty lines are skipped.

    labels: (n_items,) int64 classes, if a field is named; digest: sha256 of the file. InputError names file and line.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], labels: str | None, kind: Lines, text_of: TextOf | None = None
    ) -> None:
        """kind: says what a line holds; text_of: makes texts of fields that are none."""
        self.path, self.columns, self._kind, self._text_of = path, columns, kind, text_of
        self._header: list[str] | None = None
        self._starts, classes = array("q"), array("q")
        try:
            self._file: BinaryIO = open(path, "rb")  # noqa: SIM115 - lives as long as this
        except OSError as exc:
            raise InputError(f"{path} cannot be read ({exc.strerror}); check the path") from exc
        self._unchanged = self._stamp()
        self.digest = self._read_through(labels, classes)
        self.n_items = len(self._starts) * len(columns)
        self.labels = None if labels is None else np.repeat(np.frombuffer(classes, np.int64), len(columns))

    def texts(self, items: range) -> list[Any]:
        """The texts of these items. InputError if the file has changed since it was opened."""
        require(self._stamp() == self._unchanged, f"{self.path} has changed while it was read; start again")
        found, row, row_number = [], {}, -1
        for item in items:
            number, column = divmod(item, len(self.columns))
            if number != row_number:
                row_number, start = number, self._starts[number]
                self._file.seek(start)
                row = self._kind.row(str(self.path), _decoded(self._file.readline(), start), self._header)
            found.append(self._item(str(self.path), row, self.columns[column]))
        return found

    def _item(self, where: str, row: dict[str, Any], column: str) -> Any:
        """A column of a row as an item."""
        return self._text(where, row, column)

    def _check_row(self, where: str, row: dict[str, Any]) -> None:
        """InputError unless every column of the row is an item."""
        for column in self.columns:
            self._text(where, row, column)
        require(
            PAIR not in row or PAIR in self.columns or "text" not in self.columns,
            f"{where} is a pair of texts, which only task.name = classify or rerank takes, of a model with a head for"
            f" them (a sequence classifier or cross-encoder); drop {PAIR}, or name both fields with input.dataset",
        )

    def _read_through(self, labels: str | None, classes: array[int]) -> str:
        """Check all lines and note where rows begin -> sha256."""
        digest = hashlib.sha256()
        for number, start, raw in _lines(self.path, self._file):
            digest.update(raw)
            try:
                line = _decoded(raw, start)
            except UnicodeDecodeError as exc:
                raise InputError(
                    f"{self.path} is not UTF-8 at byte {start + exc.start}; convert it, for example with "
                    "iconv -f latin1 -t utf-8"
                ) from exc
            if not line.strip():
                continue
            if self._kind.header and self._header is None:
                self._header = line.split("\t")
                continue
            where = self._where(number)
            row = self._kind.row(where, line, self._header)
            self._check_row(where, row)
            if labels is not None:
                classes.append(class_number(where, field(where, row, labels)))
            self._starts.append(start)
        return digest.hexdigest()

    def _text(self, where: str, row: dict[str, Any], column: str) -> str:
        if self._text_of is None:
            return text_field(where, row, column)
        return text_field(where, {column: self._text_of(where, field(where, row, column))}, column)

    def _where(self, number: int) -> str:
        return f"{self.path}, line {number}"

    def _stamp(self) -> tuple[int, int]:
        facts = os.fstat(self._file.fileno())
        return facts.st_size, facts.st_mtime_ns


def begins_with_field(path: Path, name: str, instead_of: str) -> bool:
    """Whether the first line of a .jsonl file is an object with one of these fields and not the other."""
    if path.suffix != ".jsonl":
        return False
    try:
        with open(path, "rb") as file:
            first = next((line for _, _, line in _lines(path, file) if line.strip()), b"")
        row = json.loads(first)
    except (OSError, ValueError, RecursionError):  # told when it is read
        return False
    return isinstance(row, dict) and name in row and instead_of not in row


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Number from 1, first byte and contents of every line."""
    number = start = 0
    while raw := file.readline(LONGEST_LINE + 1):
        number += 1
        require(
            len(raw) <= LONGEST_LINE,
            f"{path}, line {number} has more than {LONGEST_LINE >> 20} MiB; an item is one line, cut it into several",
        )
        yield number, start, raw
        start += len(raw)


def _decoded(raw: bytes, start: int) -> str:
    """A line that begins at byte `start` of its file."""
    text = raw.decode().removesuffix("\n").rstrip("\r")
    return text if start else text.removeprefix("\ufeff")


def field(where: str, row: dict[str, Any], name: str) -> Any:
    """A field of a row; InputError, which begins with `where`, if it is not there."""
    if name not in row:
        key = "input.pair" if name == PAIR else "input.dataset or input.labels"
        raise InputError(f"{where}: no field '{name}', only {', '.join(row)}; name one with {key}")
    return row[name]


def text_field(where: str, row: dict[str, Any], name: str) -> str:
    """A field of a row that is text; InputError, which begins with `where`, if it is none."""
    text = field(where, row, name)
    require(isinstance(text, str), f"{where}: {text!r} is not text; choose the field with input.dataset")
    bad = undecodable(text)
    require(not bad, f"{where}: {bad}; correct the line, or write \\ufffd there")
    return str(text)


def class_number(where: str, value: Any) -> int:
    """A class as a field says it; InputError, which begins with `where`, if it is no integer."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, float) or not -(1 << 63) <= number < 1 << 63:
        raise InputError(f"{where}: label {value!r} is not an integer; number the classes from 0")
    return number
