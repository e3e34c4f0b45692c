"""Where the time of a forward pass goes, on this rank and over all ranks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI

#: the phases of a forward pass, in order; "exchange" is time inside MPI calls, the rest is compute
PHASES = ("embed", "encode", "project", "attention", "decode", "mlp", "exchange", "head")


class Laps:
    """Phase timer without barriers: each mark charges the time since the last one to a phase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._last = 0.0

    def start(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now


def collect_latency(comm: MPI.Comm, seconds: dict[str, float]) -> dict[str, Any]:
    """Collective: the phases of the slowest rank, in seconds; total = compute + exchange_wait."""
    mine = np.array([seconds[phase] for phase in PHASES])
    every = np.empty((comm.Get_size(), len(PHASES)))
    comm.Allgather(mine, every)
    slowest = every[every.sum(axis=1).argmax()]
    phases = {phase: float(s) for phase, s in zip(PHASES, slowest, strict=True)}
    wait = phases["exchange"]
    total = sum(phases.values())
    return {"total": total, "compute": total - wait, "exchange_wait": wait, "phases": phases}
