"""A cell: what one contestant took for one prompt at one place, as a file that every turn adds to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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


class EncoderCells:
    """WORK/cells/encoders.json: a cell per place, encoder and contestant, with all its passes."""

    def __init__(self, work: Path) -> None:
        self.path = work / "cells" / "encoders.json"
        self.cells: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def passes(self, *key: str) -> int:
        return len(self.cells.get(" ".join(key), {"pass_s": []})["pass_s"])

    def add(self, *key: str, answer: dict[str, Any], sent: float, exact: np.ndarray) -> str:
        cell = self.cells.setdefault(" ".join(key), {"pass_s": [], "pass_cpu_s": [], "sent_bytes": []})
        cell["pass_s"].append(answer["first_s"])
        cell["pass_cpu_s"].append(answer["first_cpu_s"])
        cell["sent_bytes"].append(sent)
        cell["peak_bytes"] = max(answer["peak_bytes"])
        cell["off"] = float(np.abs(np.array(answer["tokens"]) - exact).max() / np.abs(exact).max())
        whole.write_text(self.path, json.dumps(self.cells, indent=1) + "\n")
        return f"{1e3 * answer['first_s']:.0f} ms, {1e3 * answer['first_cpu_s']:.0f} ms of CPU time"
