"""Ranks, each at work on its own part of a long task: rank 0 hears how far all are, and all end soon when one fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any

import numpy as np
from mpi4py import MPI

from astra_mpi.errors import raise_together
from astra_mpi.ranks.watched import alone, waiting

POLL_S, TELL_S = 0.05, 0.5
_REPORT, _RELEASE = 21, 22
#: what a rank is at, beside the work it has done; what rank 0 answers
_AT_WORK, _ENDED, _FAILED = 0, 1, 2
_GO, _STOP = 0, 1


class Stopped(Exception):
    """Another rank failed, or this one's main thread has left: the work is not needed any more."""


class Crew:
    """A rank's view of the work. `step` may be called by any thread, the others by the main thread only."""

    def __init__(self, comm: MPI.Comm, what: str, progress: Callable[[float], None]) -> None:
        """Collective. what: they are at, for the watchdog; progress(work) is told on rank 0 what all have done."""
        self.comm, self.what, self.progress = comm, what, progress
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.stopped = threading.Event()
        self._lock, self._done = threading.Lock(), 0.0
        self._all = np.zeros((self.size, 2))  # (work done, at), on rank 0
        self._sent: list[tuple[MPI.Request, np.ndarray]] = []
        self._told_s, self._told, self._released = 0.0, 0.0, False
        self._answer = np.zeros(1, np.int64)
        self._release = comm.Irecv(self._answer, 0, _RELEASE) if self.rank else MPI.REQUEST_NULL

    def step(self, work: float) -> None:
        """So much more is done. Raises Stopped where it is to no purpose to go on."""
        if self.stopped.is_set():
            raise Stopped
        with self._lock:
            self._done += work

    def wait(self, futures: Iterable[Future[Any]]) -> None:
        """Until all are done; raises what one of them raises."""
        pending = set(futures)
        while pending:
            with alone(
                self.comm, self.what
            ):  # anew whenever something got done: the watchdog knows that this one lives
                before = self._done
                while pending and self._done == before:
                    done, pending = wait(pending, timeout=POLL_S, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    self._look()

    def end(self, failure: Exception | None) -> None:
        """Collective: this rank's work is done, or failed with `failure`, which is then raised on all."""
        self.stopped.set()
        if isinstance(failure, Stopped):
            failure = None
        with waiting(self.comm, "the end of the others' work"):
            if self.rank:
                self._tell(_ENDED if failure is None else _FAILED)
                while not self._release.Test():  # a blocking wait would take a core from those at work
                    time.sleep(POLL_S)
            else:
                self._all[0] = self._done, _ENDED if failure is None else _FAILED
                while (self._all[:, 1] == _AT_WORK).any():
                    self._hear()
                    time.sleep(POLL_S)
                self._answer_all(_GO)
            MPI.Request.Waitall([request for request, _ in self._sent])
        raise_together(self.comm, failure)

    def _look(self) -> None:
        """Tell or hear how far the work is; raises Stopped if another rank has failed."""
        if self.rank == 0:
            self._all[0, 0] = self._done
            self._hear()
            stop = self._released
        else:
            if self._done > self._told and time.monotonic() - self._told_s > TELL_S:
                self._tell(_AT_WORK)
            stop = bool(self._release.Test())  # before the end, rank 0 sends nothing else
        if stop:
            raise Stopped

    def _tell(self, at: int) -> None:
        self._told_s, self._told = time.monotonic(), self._done
        message = np.array([self._told, at])
        self._sent.append((self.comm.Isend(message, 0, _REPORT), message))

    def _hear(self) -> None:
        """Rank 0: what the others have told; all of them are told to stop as soon as one has failed."""
        status = MPI.Status()
        while self.size > 1 and self.comm.Iprobe(MPI.ANY_SOURCE, _REPORT, status):
            source = status.Get_source()
            self.comm.Recv(self._all[source], source, _REPORT)
        if (self._all[:, 1] == _FAILED).any():
            self._answer_all(_STOP)
        self.progress(float(self._all[:, 0].sum()))

    def _answer_all(self, answer: int) -> None:
        """Once: the one message that every other rank waits for."""
        if self._released:
            return
        self._released = True
        for r in range(1, self.size):
            message = np.array([answer])
            self._sent.append((self.comm.Isend(message, r, _RELEASE), message))
