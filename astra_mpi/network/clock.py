"""The clock that a forward pass is timed with: the wall's, or one that times P ranks on few cores as P machines."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import numpy as np

from astra_mpi.errors import collective
from astra_mpi.ranks.temporary import temporary_folder

if TYPE_CHECKING:
    from mpi4py import MPI

CLOCKS = ("wall", "virtual")
#: between two looks at what a rank waits for, which must not take a core from the rank that computes: naps grow
_POLL_S, _LONGEST_S = 3e-4, 1e-2
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Transfer(Protocol):
    """What a clock can wait for."""

    def wait(self) -> None: ...
    def test(self) -> bool: ...


class WallClock:
    """Seconds of this host's monotonic clock, plus an offset that makes ranks on several hosts agree."""

    name = "wall"
    speed = 1.0

    def __init__(self, offset_s: float = 0.0) -> None:
        self.offset_s = offset_s

    def now(self) -> float:
        return time.perf_counter() + self.offset_s

    def wait(self, transfer: Transfer) -> None:
        """Until MPI has done `transfer`."""
        transfer.wait()

    def wait_until(self, time_s: float) -> None:
        """Sleep, so that an emulated transfer takes no core from anybody."""
        left_s = time_s - self.now()
        if left_s > 0:
            time.sleep(left_s)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a forward pass."""
        yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around what no rank would have to compute on a real network."""
        yield

    def meet(self, comm: MPI.Comm) -> None:
        """Collective, before a forward pass; nothing to do where time passes by itself."""

    def latest(self, comm: MPI.Comm) -> float:
        """Collective: the time on the rank where it is latest."""
        mine, latest = np.array([self.now()]), np.empty(1)
        comm.Allreduce(mine, latest, op=_maximum())
        return float(latest[0])


class VirtualClock(WallClock):
    """A rank's own CPU seconds times `speed`, plus the waits that a link model tells it of.

    What goes on outside of `running`, and while MPI or the scheduler lets the rank wait, takes no time. Ranks of one
    host take turns: one computes on a quiet core while the others sleep.
    """

    name = "virtual"

    def __init__(self, speed: float = 1.0, turn: IO[str] | None = None) -> None:
        super().__init__()
        self.speed = speed  # CPU seconds count this many times
        self.turn = turn  # a file whose lock is the right to compute, or None: all at once
        self._time_s = self._cpu_s = 0.0
        self._runs = False

    def now(self) -> float:
        if self._runs:
            cpu_s = time.thread_time()
            self._time_s += (cpu_s - self._cpu_s) * self.speed
            self._cpu_s = cpu_s
        return self._time_s

    def wait(self, transfer: Transfer) -> None:
        with self._paused():
            nap_s = _POLL_S
            while not transfer.test():
                time.sleep(nap_s)
                nap_s = min(1.2 * nap_s, _LONGEST_S)

    def wait_until(self, time_s: float) -> None:
        self._time_s = max(self.now(), time_s)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._resume()
        try:
            yield
        finally:
            self._pause()

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.now()
        try:
            yield
        finally:
            self._cpu_s = time.thread_time()

    def meet(self, comm: MPI.Comm) -> None:
        """Collective: all ranks at the time of the latest one."""
        self._time_s = self.latest(comm)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        ran = self._runs
        if ran:
            self._pause()
        try:
            yield
        finally:
            if ran:
                self._resume()

    def _pause(self) -> None:
        self.now()
        self._runs = False
        if self.turn is not None:
            fcntl.flock(self.turn, fcntl.LOCK_UN)

    def _resume(self) -> None:
        if self.turn is not None:
            fcntl.flock(self.turn, fcntl.LOCK_EX)
        self._cpu_s = time.thread_time()
        self._runs = True


def make_clock(comm: MPI.Comm, name: str, speed: Sequence[float], emulated: bool) -> WallClock:
    """Collective. speed: one factor for all ranks, or one for each. emulated: ranks must agree on what time it is."""
    rank, size = comm.Get_rank(), comm.Get_size()
    if name == "wall":
        return WallClock(_offset_s(comm) if emulated and size > 1 else 0.0)
    return VirtualClock(speed[rank % len(speed)], _turn(comm) if size > 1 else None)


def _turn(comm: MPI.Comm) -> IO[str]:
    """Collective: a lock file that the ranks of one host share; nothing of it stays in the file system."""
    token = np.frombuffer(os.urandom(8), np.uint8).copy()
    comm.Bcast(token, root=0)
    with collective(comm):
        path = temporary_folder() / f"astra-mpi-{token.tobytes().hex()}.turn"
        turn = path.open("a")  # closed with the clock
    path.unlink(missing_ok=True)
    return turn


def _offset_s(comm: MPI.Comm, rounds: int = 20) -> float:
    """Collective: what to add to this host's clock to have rank 0's: nothing on rank 0's host, else from the quickest
    of some round trips, half of which may be wrong either way."""
    host = np.frombuffer(_host().ljust(36)[:36].encode(), np.uint8)
    hosts = np.empty((comm.Get_size(), 36), np.uint8)
    comm.Allgather(host, hosts)
    away = [r for r in range(len(hosts)) if (hosts[r] != hosts[0]).any()]
    offset_s = 0.0
    if away:
        private = comm.Dup()  # the caller's messages are not ours to receive
        for r in away:
            offset_s += _round_trips(private, r, rounds)
        private.Free()
    return offset_s


def _round_trips(comm: MPI.Comm, other: int, rounds: int) -> float:
    """Rank 0 and `other` between them; the offset on `other`, 0 on all others."""
    rank, theirs = comm.Get_rank(), np.empty(1)
    best_s, offset_s = np.inf, 0.0
    for _ in range(rounds):
        if rank == other:
            begin = time.perf_counter()
            comm.Sendrecv(np.zeros(1), 0, recvbuf=theirs, source=0)
            end = time.perf_counter()
            if end - begin < best_s:
                best_s, offset_s = end - begin, float(theirs[0]) - (begin + end) / 2
        elif rank == 0:
            comm.Recv(theirs, other)
            comm.Send(np.array([time.perf_counter()]), other)
    return offset_s


def _host() -> str:
    """What tells hosts apart whose monotonic clocks differ: containers of one host share it."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return platform.node()


def _maximum() -> MPI.Op:
    from mpi4py import MPI

    return MPI.MAX
