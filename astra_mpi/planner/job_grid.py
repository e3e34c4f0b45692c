"""The grid for the ranks and the job at hand: chosen where nobody names one, or named where another is much faster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.errors import collective
from astra_mpi.planner.auto import Workload, measured_setting
from astra_mpi.planner.grid_plan import grid_plan
from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.ranks.grid import Grid
from astra_mpi.ranks.machine import ranks_here

if TYPE_CHECKING:
    from mpi4py import MPI

#: what is named if it is predicted to be so many times as fast
MUCH = 1.3


def choose_grid(model: Any, workload: Workload, objective: str) -> str:
    """Collective: the best grid for the ranks of `model.comm` under their memory, by exact strategies, with codebooks
    by theirs too. model: one at work, or what is known of one before that."""
    setting, _ = measured_setting(model, workload, model.comm)
    memory, text = available_bytes(model.comm), ""
    with collective(model.comm):
        if model.comm.Get_rank() == 0:
            rows = grid_plan(setting, objective, memory, "float32")["grids"]
            known = [row for row in rows if row["exact"] or (model.codec is not None and _coded(row))]
            whole = [row for row in known if row["blocks"] is None]  # stages only where a rank has no room for all
            text = json.dumps((whole or known or rows or [{"grid": None}])[0]["grid"])
    grid: str | None = json.loads(broadcast_text(model.comm, text))
    return grid or str(Grid(1, 1, model.comm.Get_size()))


def _coded(row: dict[str, Any]) -> bool:
    return str(row["strategy"]).startswith("astra")


def better_grid(model: Any, comm: MPI.Comm, grid: Grid, workload: Workload, n_items: int) -> str:
    """Collective: a sentence where an exact grid of whole models is predicted to finish a job of so many items much
    sooner than the one that is used; else nothing."""
    setting, _ = measured_setting(model, workload, comm)
    text = ""
    with collective(comm):
        if comm.Get_rank() == 0:
            rows = grid_plan(setting, "throughput", None, "float32")["grids"]
            text = _sentence(rows, grid, str(model.strategy.spec), workload.batch, n_items)
    return broadcast_text(comm, text)


def _sentence(rows: list[dict[str, Any]], grid: Grid, strategy: str, batch: int, n_items: int) -> str:
    """rows: of `grid_plan`."""

    def job_s(row: dict[str, Any]) -> float:
        replicas = int(row["grid"].split("x")[0])
        n_turns = -(-n_items // batch // replicas)  # of a replica
        return float(max(n_items, n_turns * batch * replicas) / row["sequences_per_s"])

    now = [row for row in rows if row["grid"] == str(grid) and row["strategy"] == strategy]
    exact = [row for row in rows if row["exact"] and row["blocks"] is None]
    if not now or not exact:
        return ""
    best, used = min(exact, key=job_s), min(now, key=job_s)
    times = job_s(used) / job_s(best)
    if times < MUCH or best["grid"] == str(grid):
        return ""
    how = "whole sequences on ranks, exact" if best["strategy"] == "single" else f"with {best['strategy']}, exact"
    return (
        f"astra-mpi: grid {best['grid']} ({how}) is predicted to finish this job {times:.2g} times as fast as"
        f" {strategy} on grid {grid}: parallel.grid={best['grid']}"
    )


def available_bytes(comm: MPI.Comm) -> list[float]:
    """Collective: memory that each rank may take: what its machine has left, shared with the ranks there."""
    mine = np.array([_available() / ranks_here(comm)])
    every = np.empty(comm.Get_size())
    comm.Allgather(mine, every)
    return [float(n) for n in every]


def _available() -> float:
    """Bytes that this machine has left, by Linux; any number where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 1e18
