"""Which grid of ranks is best, as `plan` shows it: rows, the best ones, and sentences (docs/explanation/grid.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astra_mpi.config import require
from astra_mpi.costs.setting import Setting
from astra_mpi.planner.grids import Room, Search

OBJECTIVES = ("latency", "throughput")
#: rows that are shown
SHOWN = 10
_EXACT_FIRST = 1.05


def grid_plan(setting: Setting, objective: str, memory: Sequence[float] | None, handed: str) -> dict[str, Any]:
    """Every grid and strategy that fits, best first, and what does not fit, as JSON types."""
    require(objective in OBJECTIVES, f"--objective {objective}: use {' or '.join(OBJECTIVES)}")
    limits = None if memory is None else tuple(memory) * (setting.size if len(memory) == 1 else 1)
    rows, misfits = Search(setting, Room(limits), handed).rows()
    by = {"latency": lambda row: row["latency_s"], "throughput": lambda row: -row["sequences_per_s"]}
    return {
        "objective": objective,
        "memory_bytes": None if limits is None else [int(n) for n in limits],
        "handed_on": handed,
        "best": {name: best_row(rows, name) for name in OBJECTIVES},
        "grids": sorted(rows, key=by[objective]),
        "misfits": misfits,
    }


def best_row(rows: Sequence[dict[str, Any]], objective: str) -> dict[str, Any] | None:
    """The fastest; an exact one unless it is slower by more than a twentieth; of equally fast ones that with the
    fewest parts, which is listed first."""
    if not rows:
        return None

    def seconds(row: dict[str, Any]) -> float:
        return float(row["latency_s"] if objective == "latency" else 1 / row["sequences_per_s"])

    least = min(map(seconds, rows))
    exact = [row for row in rows if row["exact"] and seconds(row) <= _EXACT_FIRST * least]
    return min(exact or rows, key=seconds)


def grid_advice(plan: dict[str, Any], size: int) -> list[str]:
    """Sentences; `plan` as `grid_plan` gives it."""
    said = []
    one, job = plan["best"]["latency"], plan["best"]["throughput"]
    if one is None:
        return ["No grid fits into this memory; take more ranks, or ranks with more memory."]
    if one["strategy"] == "single" and one["blocks"] is None and size > 1:
        said.append(f"For one input, now: one rank alone is fastest ({1e3 * one['latency_s']:.3g} ms).")
    else:
        said.append(f"For one input, now: {_named(one)}, {1e3 * one['latency_s']:.3g} ms.")
    exact = [row for row in plan["grids"] if row["exact"]]
    if not one["exact"] and exact:
        best = min(exact, key=lambda row: row["latency_s"])
        said.append(f"The fastest exact one: {_named(best)}, {1e3 * best['latency_s']:.3g} ms.")
    said.append(f"For a job of many: {_named(job)}, {job['sequences_per_s']:.3g} sequences a second.")
    if plan["misfits"]:
        grids = ", ".join(row["grid"] for row in plan["misfits"])
        said.append(f"These do not fit: {grids} ({plan['misfits'][0]['why']}).")
    return said


def _named(row: dict[str, Any]) -> str:
    kind = "exact" if row["exact"] else "approximate"
    blocks = f", blocks {'/'.join(map(str, row['blocks']))}" if row["blocks"] else ""
    bits = "" if row["bits_per_token_per_block"] is None else f" at {row['bits_per_token_per_block']:.4g} bits"
    return f"grid {row['grid']} with {row['strategy']}{bits} ({kind}{blocks})"
