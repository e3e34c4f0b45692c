"""Items that are two texts: `text` and `text_pair` of a row, or a line [a, b] of JSON."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.inputs.records import PAIR, Lines, Records, text_field


class PairRecords(Records):
    """The rows of a text file; a row with a second text is a pair.

    column, pair: fields of the first and the second text, `pair` None: "text_pair". ranked: every row must be a pair,
    and `queries` (n_items,) numbers the first texts, equal ones alike, in the order in which they come.
    """

    def __init__(
        self, path: Path, column: str, pair: str | None, labels: str | None, ranked: bool, kind: Lines
    ) -> None:
        self.pair, self._always = pair or PAIR, ranked or pair is not None
        self._numbers: dict[bytes, int] = {}
        self._numbered = array("q") if ranked else None
        super().__init__(path, (column,), labels, kind)
        self._numbers.clear()
        self.queries = None if self._numbered is None else np.frombuffer(self._numbered, np.int64)

    def _check_row(self, where: str, row: dict[str, Any]) -> None:
        text = text_field(where, row, self.columns[0])
        if self._always or row.get(self.pair) is not None:
            text_field(where, row, self.pair)
        if self._numbered is not None:
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            self._numbered.append(self._numbers.setdefault(digest, len(self._numbers)))

    def _item(self, where: str, row: dict[str, Any], column: str) -> str | tuple[str, str]:
        second = row.get(self.pair)
        return row[column] if second is None else (row[column], second)


def check_single(column: str | tuple[str, ...] | None) -> str:
    """The one field of first texts. InputError on several."""
    single = column is None or isinstance(column, str)
    require(single, f"input.dataset = {column!r}: texts of pairs come from one field, and input.pair names the other's")
    return column if isinstance(column, str) else "text"
