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
        #: None, or a list that collects (name, start_s, end_s) of everything marked: a trace
        self.events: list[tuple[str, float, float]] | None = None

    def start(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        if self.events is not None:
            self.events.append((phase, self._last, now))
        self._last = now

    def in_flight(self, start_s: float) -> None:
        """Note in a trace that an exchange was under way from `start_s` (of perf_counter) until now."""
        if self.events is not None:
            self.events.append(("in flight", start_s, time.perf_counter()))


def collect(
    comm: MPI.Comm, seconds: dict[str, float], contributed_bytes: int, other_bytes: int
) -> tuple[dict[str, Any], list[int], int]:
    """Collective: latency in seconds, total = compute + exchange_wait, and bytes.

    total is the largest over ranks; compute and its phases are those of the rank that computed most, which the others
    wait for. Returns the latency, the bytes each rank contributed to block exchanges, and the other bytes of all ranks.
    """
    mine = np.array([*(seconds[phase] for phase in PHASES), contributed_bytes, other_bytes], dtype=np.float64)
    every = np.empty((comm.Get_size(), len(mine)))
    comm.Allgather(mine, every)
    times = every[:, :-2]  # (P, phases)
    total = float(times.sum(axis=1).max())
    computed = times.sum(axis=1) - times[:, PHASES.index("exchange")]
    phases = {phase: float(s) for phase, s in zip(PHASES, times[computed.argmax()], strict=True)}
    compute = float(computed.max())
    phases["exchange"] = wait = total - compute
    latency = {"total": total, "compute": compute, "exchange_wait": wait, "phases": phases}
    return latency, [int(n) for n in every[:, -2]], int(every[:, -1].sum())
