"""JSON Lines: an object per line."""

from __future__ import annotations

import json
from typing import Any

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.inputs.kinds.texts import LineKind


class JsonLines(LineKind):
    """.jsonl files."""

    suffixes = (".jsonl",)

    @classmethod
    def row(cls, where: str, line: str, header: list[str] | None) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise InputError(f"{where}: not valid JSON ({exc}); each line is one JSON object") from exc
        require(isinstance(row, dict), f"{where}: each line is one JSON object, this is {type(row).__name__}")
        return dict(row)
