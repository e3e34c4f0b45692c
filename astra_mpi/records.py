"""Text items and their classes from .txt (a line each), .jsonl (a field) and .tsv (one column or several)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.text import read_text

#: a line with its number, from 1
Line = tuple[int, str]


def read_records(path: Path, columns: Sequence[str], labels: str | None) -> tuple[list[str], np.ndarray | None]:
    """-> texts, and their classes int64 if `labels` names them.

    Every column of every row is an item, row after row. Empty lines are skipped. InputError names file and line.
    """
    readers = {".txt": _plain, ".jsonl": _json_rows, ".tsv": _tab_rows}
    if path.suffix not in readers:
        raise InputError(f"{path}: text comes from {', '.join(readers)}, not from '{path.suffix}'; convert it")
    lines = [(i, line.rstrip("\r")) for i, line in enumerate(read_text(str(path)).split("\n"), 1) if line.strip()]
    require(path.suffix != ".txt" or labels is None, f"{path}: a .txt file has no labels; use .jsonl or .tsv")
    rows = readers[path.suffix](path, lines)
    texts = [_field(path, i, row, column) for i, row in rows for column in columns]
    for (i, _), text in zip([row for row in rows for _ in columns], texts, strict=True):
        require(isinstance(text, str), f"{path}, line {i}: {text!r} is not text; choose the field with input.dataset")
    if labels is None:
        return texts, None
    classes = [_integer(path, i, _field(path, i, row, labels)) for i, row in rows]
    return texts, np.repeat(np.array(classes, dtype=np.int64), len(columns))


def _plain(path: Path, lines: list[Line]) -> list[tuple[int, dict[str, Any]]]:
    return [(i, {"text": line}) for i, line in lines]


def _json_rows(path: Path, lines: list[Line]) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for i, line in lines:
        try:
            row = json.loads(line)
        except ValueError as exc:
            raise InputError(f"{path}, line {i}: not valid JSON ({exc}); each line is one JSON object") from exc
        require(isinstance(row, dict), f"{path}, line {i}: each line is one JSON object, this is {type(row).__name__}")
        rows.append((i, row))
    return rows


def _tab_rows(path: Path, lines: list[Line]) -> list[tuple[int, dict[str, Any]]]:
    """Quotes are ordinary characters."""
    if not lines:
        return []
    header = lines[0][1].split("\t")
    rows = []
    for i, line in lines[1:]:
        cells = line.split("\t")
        require(len(cells) >= len(header), f"{path}, line {i}: {len(cells)} columns, the header has {len(header)}")
        rows.append((i, dict(zip(header, cells, strict=False))))
    return rows


def _field(path: Path, i: int, row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise InputError(
            f"{path}, line {i}: no field '{name}', only {', '.join(row)}; name one with input.dataset or input.labels"
        )
    return row[name]


def _integer(path: Path, i: int, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, float):
        raise InputError(f"{path}, line {i}: label {value!r} is not an integer; number the classes from 0")
    return number
