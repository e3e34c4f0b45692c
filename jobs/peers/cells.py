"""A cell: what one contestant took for one prompt at one place, as a file that every turn adds to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contestants import Contestant
from prepare import LENGTHS

from astra_mpi.files import whole

LONG_S = 30.0  # a turn that takes longer is not repeated


@dataclass(frozen=True)
class Cell:
    work: Path
    place: str
    contestant: Contestant
    tokens: int

    @property
    def path(self) -> Path:
        return self.work / "cells" / f"{self.place}-{self.contestant.name}-{self.tokens}.json"

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = {"place": self.place, "contestant": self.contestant.name, "tokens": self.tokens}
        return json.loads(self.path.read_text()) if self.path.exists() else found | {"turns": []}

    def done(self, repeats: int) -> bool:
        found = self.read()
        turns = found["turns"]
        long = bool(turns) and turns[0]["first_s"] > LONG_S
        return long or "left_out" in found or len(turns) >= repeats

    def write(self, **more: Any) -> None:
        whole.write_text(self.path, json.dumps(self.read() | more, indent=1) + "\n")


def predicted_s(cell: Cell) -> float | None:
    """At least, by the longest prompt that has been measured: per token, attention not counted."""
    for tokens in sorted((n for n in LENGTHS if n < cell.tokens), reverse=True):
        found = Cell(cell.work, cell.place, cell.contestant, tokens).read()
        if found["turns"]:
            return float(min(turn["first_s"] for turn in found["turns"])) * cell.tokens / tokens
        if "left_out" in found:
            return float(found["left_out"]) * cell.tokens / tokens
    return None
