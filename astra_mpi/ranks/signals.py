"""Ctrl-C, SIGTERM and SIGUSR1 as a request that the ranks agree on, instead of an exception at any line of any rank."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.errors import AstraError

if TYPE_CHECKING:
    from mpi4py import MPI

#: SIGUSR1 is what batch systems send before a limit or a preemption, when told to
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(AstraError):
    """The user or the batch system asked for an end; all ranks raise it together. Exit code 128 + signal number."""

    collective = True

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class Interrupts:
    """Context in which Ctrl-C is noted: it ends what a model says, not the job. A second one that finds the first still
    there acts as it did before."""

    def __init__(self) -> None:
        self._noted = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._noted and callable(self._before):
            self._before(signum, frame)
        self.note()

    def note(self) -> None:
        """As if there had been one."""
        self._noted = True

    def __bool__(self) -> bool:
        return self._noted

    def take(self) -> bool:
        """Whether there was one; from now on there was none."""
        noted, self._noted = self._noted, False
        return noted


class StopRequests:
    """Context in which the first of SIGNALS is noted; a second one of the same kind acts as it did before."""

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, signum: int, _: FrameType | None) -> None:
        self.signum = self.signum or signum  # a limit is announced by SIGUSR1, and SIGTERM comes when it is reached
        if signum != signal.SIGUSR1:  # batch systems may send it twice, to the launcher and to the ranks
            signal.signal(signum, self._before[signum])

    def agreed(self, comm: MPI.Comm) -> int:
        """Collective: the highest signal number any rank has received, 0 for none."""
        from mpi4py import MPI

        mine = np.array([self.signum], dtype=np.int32)
        highest = np.empty_like(mine)
        comm.Allreduce(mine, highest, op=MPI.MAX)
        return int(highest[0])
