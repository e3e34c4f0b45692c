"""JSON Lines: an object per line, or a pair of texts."""

from __future__ import annotations

import json
from typing import Any

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.inputs.kinds.texts import LineKind
from astra_mpi.inputs.records import PAIR


class JsonLines(LineKind):
    """.jsonl files."""

    suffixes = (".jsonl",)

    @classmethod
    def row(cls, where: str, line: str, header: list[str] | None) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise InputError(f"{where}: not valid JSON ({exc}); each line is one JSON object") from exc
        if isinstance(row, list) and len(row) == 2:
            return {"text": row[0], PAIR: row[1]}
        require(isinstance(row, dict), f"{where}: each line is one JSON object, this is {type(row).__name__}")
        return dict(row)
