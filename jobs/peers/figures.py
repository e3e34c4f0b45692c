"""What measure.py has measured, as rows: medians of a cell's turns, what is the same as exact, and who is first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contestants import BY_NAME, CONTESTANTS, OURS, Contestant


@dataclass(frozen=True)
class Row:
    """A measured cell."""

    place: str  # core, node, or Mbit/s
    contestant: Contestant
    tokens: int  # of the prompt
    repeats: int
    first_s: float  # to the first token; on a core CPU seconds, else by the clock
    token_s: float  # of a further one
    first_bytes: float  # on all wires, up to the first token
    token_bytes: float
    peak_bytes: float  # of the node that takes most
    load_s: float
    same: int | None  # tokens that are the exact ones, before the first other one
    new: int


def row_of(found: dict[str, Any], exact: dict[str, list[int]]) -> Row:
    turns, suffix = found["turns"], "_cpu_s" if found["place"] == "core" else "_s"

    def median(name: str) -> float:
        return float(np.median([turn[name] for turn in turns]))

    answer, true = found["answer"], exact.get(str(found["tokens"]))
    same = None
    if true is not None:
        n = min(len(answer), len(true))
        same = next((i for i in range(n) if answer[i] != true[i]), n)
    told = {name: found[name] for name in ("place", "tokens", "token_bytes", "load_s", "new")}
    return Row(
        contestant=BY_NAME[found["contestant"]],
        repeats=len(turns),
        first_s=median(f"first{suffix}"),
        token_s=median(f"token{suffix}"),
        first_bytes=median("first_bytes"),
        peak_bytes=max(found["peak_bytes"]),
        same=same,
        **told,
    )


@dataclass(frozen=True)
class Figures:
    rows: dict[tuple[str, str, int], Row]  # by place, contestant and tokens
    left_out: dict[tuple[str, str, int], float]  # seconds that it would have taken
    machine: dict[str, Any]
    perplexity: dict[str, Any] | None  # exact, bits of codes, and `of` each process of ours on four nodes
    texts: dict[str, Any] | None  # what texts.py has found
    encoders: dict[str, Any] | None  # what encoders.py has, by "place encoder contestant"

    def get(self, place: str, contestant: Contestant, tokens: int) -> Row | None:
        return self.rows.get((place, contestant.name, tokens))

    def over_exact(self, one: Contestant) -> float | None:
        """Perplexity over the exact one, where it is measured."""
        known = self.perplexity
        found = known and known["of"].get(one.process)
        return found / known["exact"] if known and found else None

    def lengths(self) -> list[int]:
        return sorted({tokens for *_, tokens in self.rows})

    def links(self) -> list[str]:
        return sorted({place for place, *_ in self.rows if place not in ("core", "node")}, key=float)

    def best(self, quantity: str, tokens: int, places: tuple[str, ...], ours: bool) -> Row | None:
        """The least `quantity` of ours, or of the peers, at these places."""
        here = [row for row in self.rows.values() if row.tokens == tokens and row.place in places]
        of_them = [row for row in here if (row.contestant.peer == OURS) == ours]
        return min(of_them, key=lambda row: getattr(row, quantity), default=None)


def read(work: Path) -> Figures:
    """Of WORK/cells and WORK/files."""

    def loaded(path: Path) -> Any:
        return json.loads(path.read_text()) if path.exists() else None

    exact = loaded(work / "files" / "exact.json") or {}
    rows, left_out = {}, {}
    known = {one.name for one in CONTESTANTS}
    for path in sorted((work / "cells").glob("*-*.json")):
        found = json.loads(path.read_text())
        key = (found["place"], found["contestant"], found["tokens"])
        if found["contestant"] in known and found["turns"]:
            rows[key] = row_of(found, exact)
        elif "left_out" in found:
            left_out[key] = found["left_out"]
    machine = loaded(work / "cells" / "machine.json") or {}
    texts, encoders = (loaded(work / "cells" / f"{name}.json") for name in ("texts", "encoders"))
    return Figures(rows, left_out, machine, loaded(work / "files" / "perplexity.json"), texts, encoders)
