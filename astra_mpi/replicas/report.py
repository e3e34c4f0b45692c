"""Reports of replicas as one report of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astra_mpi.ranks.grid import Grid

Report = dict[str, Any]
#: numbers of each rank of a replica
_PER_RANK = ("contributed_bytes", "formula_bytes", "port_bytes", "handed_bytes")
_PER_RANK_DECODING = ("decode_bytes", "id_bytes", "cache_bytes", "handed_bytes")
_PER_SEQUENCE_DECODING = ("new_tokens", "ended")


def of_one(report: Report, grid: Grid, replica: int, held: Report) -> Report:
    """The report of a pass of one replica, with a place for every rank of the grid; those of others have 0.

    held: what ranks have at all times, a list (P,) each.
    """
    spread = {**report, **_counts_of_all([report], grid, [replica]), **held}
    latency = report["latency_s"]
    if "compute_by_rank" in latency:
        spread["latency_s"] = latency | {"compute_by_rank": _spread([latency["compute_by_rank"]], grid, [replica])}
    if "generation" in report:
        spread["generation"] = _generation([report["generation"]], grid, [replica])
    return spread | {"ranks": grid.size, "grid": str(grid), "replica": replica}


def of_all(reports: Sequence[Report | None], grid: Grid, held: Report) -> Report:
    """The report of a batch whose sequences the replicas shared out; None: one had none. held: as for `of_one`."""
    worked = [replica for replica, report in enumerate(reports) if report is not None]
    known = [report for report in reports if report is not None]
    if not known:
        return {}
    slowest = max(known, key=lambda report: float(report["latency_s"]["total"]))
    by_rank = _spread([report["latency_s"].get("compute_by_rank", ()) for report in known], grid, worked)
    merged = {
        **slowest,
        **_counts_of_all(known, grid, worked),
        "tokens": [n for report in known for n in report["tokens"]],
        "paper_bytes": sum(report["paper_bytes"] for report in known),
        "other_bytes": sum(report["other_bytes"] for report in known),
        "distinct_keys": _mean([report["distinct_keys"] for report in known]),
        "missing": _added([report["missing"] for report in known]),
        "latency_s": slowest["latency_s"] | {"compute_by_rank": by_rank},
        **held,
    }
    if "generation" in slowest:
        merged["generation"] = _generation([report["generation"] for report in known], grid, worked)
    return merged | {"ranks": grid.size, "grid": str(grid)}


def _counts_of_all(reports: Sequence[Report], grid: Grid, replicas: Sequence[int]) -> Report:
    known = [name for name in _PER_RANK if name in reports[0]]
    return {name: _spread([report[name] for report in reports], grid, replicas) for name in known}


def _spread(parts: Sequence[Sequence[Any]], grid: Grid, replicas: Sequence[int]) -> list[Any]:
    """Numbers of the ranks of some replicas -> of all ranks."""
    every: list[Any] = [0] * grid.size
    for part, replica in zip(parts, replicas, strict=True):
        ranks = grid.ranks_of(replica)
        every[ranks.start : ranks.start + len(part)] = part
    return every


def _generation(parts: Sequence[Report], grid: Grid, replicas: Sequence[int]) -> Report:
    """Of the replica that took longest, with the numbers of all ranks and sequences."""
    slowest = max(parts, key=lambda part: float(part["latency_s"]["total"]))
    return {
        **slowest,
        **{
            name: _spread([part[name] for part in parts], grid, replicas)
            for name in _PER_RANK_DECODING
            if name in slowest
        },
        **{name: [one for part in parts for one in part[name]] for name in _PER_SEQUENCE_DECODING},
        "first_token_s": max(part["first_token_s"] for part in parts),
        "full_cache_bytes": sum(part["full_cache_bytes"] for part in parts),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _added(parts: Sequence[Report | None]) -> Report | None:
    known = [part for part in parts if part is not None]
    sums = {name: sum(part[name] for part in known) for name in ("messages", "lost", "late")}
    return {**known[0], **sums} if known else None
