"""Tables whose cells are separated by tabs, under a header."""

from __future__ import annotations

from typing import Any

from astra_mpi.config import require
from astra_mpi.inputs.kinds.texts import LineKind


class TabSeparated(LineKind):
    """.tsv files. Quotes are ordinary characters."""

    suffixes = (".tsv",)
    header = True

    @classmethod
    def row(cls, where: str, line: str, header: list[str] | None) -> dict[str, Any]:
        names, cells = header or [], line.split("\t")
        require(len(cells) >= len(names), f"{where}: {len(cells)} columns, the header has {len(names)}")
        return dict(zip(names, cells, strict=False))
