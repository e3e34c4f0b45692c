"""Where the time of a forward pass goes, on this rank and over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.network.clock import WallClock

if TYPE_CHECKING:
    from mpi4py import MPI

#: the phases of a forward pass, in order; "exchange" is time inside MPI calls, the rest is compute
PHASES = ("embed", "encode", "project", "attention", "decode", "mlp", "exchange", "head", "draft")


class Laps:
    """Phase timer without barriers: each mark charges the time since the last one to a phase, in seconds of `clock`."""

    def __init__(self, clock: WallClock | None = None) -> None:
        self.clock = clock or WallClock()
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._last = 0.0
        #: None, or a list that collects (name, start_s, end_s, turn) of everything marked: a trace
        self.events: list[tuple[str, float, float, int]] | None = None
        self.turn = 0  # of passes that take turns, the one at work

    def start(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._last = self.clock.now()

    def mark(self, phase: str) -> None:
        now = self.clock.now()
        self.seconds[phase] += now - self._last
        if self.events is not None:
            self.events.append((phase, self._last, now, self.turn))
        self._last = now

    def in_flight(self, start_s: float) -> None:
        """Note in a trace that an exchange was under way from `start_s` of the clock until now."""
        if self.events is not None:
            self.events.append(("in flight", start_s, self.clock.now(), self.turn))


def collect(comm: MPI.Comm, seconds: dict[str, float], counted: Sequence[float]) -> tuple[dict[str, Any], np.ndarray]:
    """Collective: latency in seconds, total = compute + exchange_wait, and the `counted` numbers of every rank (P, n).

    total is the largest over ranks; compute and its phases are those of the rank that computed most, which the others
    wait for; compute_by_rank has all of them.
    """
    mine = np.array([*(seconds[phase] for phase in PHASES), *counted], dtype=np.float64)
    every = np.empty((comm.Get_size(), len(mine)))
    comm.Allgather(mine, every)
    times, counts = np.split(every, [len(PHASES)], axis=1)  # (P, phases), (P, n)
    total = float(times.sum(axis=1).max())
    computed = times.sum(axis=1) - times[:, PHASES.index("exchange")]
    phases = {phase: float(s) for phase, s in zip(PHASES, times[computed.argmax()], strict=True)}
    compute = float(computed.max())
    phases["exchange"] = wait = total - compute
    latency = {"total": total, "compute": compute, "exchange_wait": wait, "phases": phases}
    latency["compute_by_rank"] = computed.tolist()
    return latency, counts
