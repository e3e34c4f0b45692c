"""Measured latency of strategies on these ranks: medians with spread, phases, bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.engine import Model
from astra_mpi.strategies import Strategy
from astra_mpi.wire.laps import PHASES

if TYPE_CHECKING:
    from mpi4py import MPI

_TRACE_NAMES = (*PHASES, "in flight")
#: exchanges that may be under way: late ones of two passes that take turns
_AT_ONCE = 4
_LANES = ["compute", "compute, second half", "exchange in flight", *["another one"] * (_AT_ONCE - 1)]


def measure(
    model: Model,
    strategies: Sequence[Strategy],
    inputs: np.ndarray,
    mask: np.ndarray | None,
    repeats: int,
    warmup: int,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Collective: per strategy the report of the repeat with the median total, plus "spread" of the totals in seconds.

    Strategies take turns, A B A B, so that a slow spell of the machine meets all of them; "over_first" is the median
    over repeats of the first strategy's total over this one's. Ranks meet at a barrier before each pass, outside the
    timed part, so that no rank pays for another's lateness.
    """
    reports: list[list[dict[str, Any]]] = [[] for _ in strategies]
    for i in range(warmup + repeats):
        for strategy, mine in zip(strategies, reports, strict=True):
            model.strategy = strategy
            model.comm.Barrier()
            model(inputs, mask)
            if i >= warmup:
                mine.append(model.report)
        progress()
    totals = np.array([[report["latency_s"]["total"] for report in mine] for mine in reports])  # (strategies, repeats)
    speedups = np.median(totals[0] / totals, axis=1)
    return [_median(*each) for each in zip(reports, totals, speedups, strict=True)]


def _median(reports: list[dict[str, Any]], totals: np.ndarray, over_first: float) -> dict[str, Any]:
    return {
        **reports[int(totals.argsort()[(len(totals) - 1) // 2])],
        "spread": {
            "min": float(totals.min()),
            "quartiles": [float(q) for q in np.quantile(totals, (0.25, 0.75))],
            "max": float(totals.max()),
            "repeats": len(totals),
            "over_first": float(over_first),
        },
    }


def trace(model: Model, inputs: np.ndarray, mask: np.ndarray | None) -> str | None:
    """Collective: one forward pass as a Chrome/Perfetto trace of all ranks, JSON text on rank 0, None elsewhere.

    Times start at a barrier: on several machines they agree to the time a barrier takes.
    """
    model.laps.events = []
    model.comm.Barrier()
    model(inputs, mask)
    events, model.laps.events = model.laps.events, None
    first_s = events[0][1] if events else 0.0  # a replica may have no sequence
    rows = np.array([(_TRACE_NAMES.index(name), a - first_s, b - first_s, turn) for name, a, b, turn in events])
    every = _gather(model.comm, rows.reshape(-1, 4))
    if every is None:
        return None
    spans = [
        {"name": _TRACE_NAMES[int(kind)], "ph": "X", "pid": rank, "tid": lane, "ts": a * 1e6, "dur": (b - a) * 1e6}
        for rank, part in enumerate(every)
        for lane, (kind, a, b, _) in zip(_lanes(part), part, strict=True)
    ]
    used = {span["tid"] for span in spans}
    names = [(0, "compute"), *((lane, _LANES[lane]) for lane in sorted(used - {0}))]
    labels = [
        {"name": what, "ph": "M", "pid": rank, "tid": tid, "args": {"name": name}}
        for rank in range(len(every))
        for what, tid, name in (("process_name", 0, f"rank {rank}"), *(("thread_name", *lane) for lane in names))
    ]
    return json.dumps({"traceEvents": labels + spans, "displayTimeUnit": "ms"})


def _lanes(rows: np.ndarray) -> list[int]:
    """Of rows (n, 4), kind, start, end, turn: 0 and 1 for what a pass and the one that takes turns with it compute, and
    from 2 on for exchanges, of which some overlap."""
    lanes, free_s = [], [0.0] * _AT_ONCE
    for kind, start_s, end_s, turn in rows:
        lane = int(turn)
        if _TRACE_NAMES[int(kind)] == "in flight":
            first = next((i for i, free in enumerate(free_s) if start_s >= free), _AT_ONCE - 1)
            free_s[first] = end_s
            lane = 2 + first
        lanes.append(lane)
    return lanes


def _gather(comm: MPI.Comm, rows: np.ndarray) -> list[np.ndarray] | None:
    """Rows (n, 4) float64 of every rank on rank 0."""
    counts = np.empty(comm.Get_size(), np.int64)
    comm.Allgather(np.array([rows.size]), counts)
    every = np.empty(int(counts.sum())) if comm.Get_rank() == 0 else None
    comm.Gatherv(rows, [every, counts] if every is not None else None)
    if every is None:
        return None
    return [part.reshape(-1, 4) for part in np.split(every, np.cumsum(counts)[:-1])]
