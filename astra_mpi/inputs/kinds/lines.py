"""Plain text: a line is an item, or the whole file is."""

from __future__ import annotations

from typing import Any

from astra_mpi.inputs.kinds.texts import LineKind


class TextLines(LineKind):
    """.txt files, UTF-8."""

    suffixes = (".txt",)
    running_text = True
    labels = False

    @classmethod
    def row(cls, where: str, line: str, header: list[str] | None) -> dict[str, Any]:
        return {"text": line}
