"""A rank that hangs ends all ranks, with one message that names it (docs/explanation/faults.md).

The main thread notes when it begins and ends to wait for other ranks: two assignments, no message. A second thread
looks at the note from time to time. Only when the note has not changed for a while does it talk MPI, on a communicator
of its own: it answers roll calls, and holds one itself once the wait is longer than the limit.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import weakref
from types import TracebackType
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from astra_mpi.ranks.witness import WITNESS

#: seconds that a rank waits for others before it asks where they are, unless the user says otherwise
LIMIT_S = 300.0
#: work that one rank does alone while the others wait for it (reading, joining, compiling) may take so many limits
ALONE = 12.0
#: how long an answer may take
GRACE_S = 5.0
_EXIT_CODE = 3
_CALL, _ANSWER = 11, 12
_WORDS = np.dtype([("number", "i8"), ("waits", "?"), ("for_s", "f8"), ("allowed_s", "f8"), ("what", "S64")])


class State(NamedTuple):
    """What the main thread does."""

    what: str
    since_s: float
    waits: bool  # for other ranks
    share: float = 1.0  # of the limit that it may take


class Answer(NamedTuple):
    """What another rank says of its main thread."""

    waits: bool
    for_s: float
    allowed_s: float
    what: str


class Watchdog:
    """Watches this process among those of a communicator. Collective to make and to `close`."""

    def __init__(self, comm: MPI.Comm, limit_s: float = LIMIT_S) -> None:
        """limit_s: 0 turns it off."""
        self.comm = MPI.Intracomm(comm).Dup()
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.limit_s = limit_s
        self.talks = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self.state = State("starting", time.monotonic(), False)
        self._number = 0
        self._sent: list[tuple[MPI.Request, np.ndarray]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=_watch, args=(weakref.ref(self), self._stop), daemon=True)
        self._thread.start()
        _DOGS.add(self)

    def waiting(self, what: str) -> Note:
        """A context in which this rank waits for others."""
        return Note(self, what, True, 1.0)

    def alone(self, what: str) -> Note:
        """A context in which others wait for this rank, and may have to for long."""
        return Note(self, what, False, ALONE)

    def stop(self) -> None:
        """No more MPI calls from the thread."""
        self._stop.set()
        self._thread.join(timeout=2 * GRACE_S)

    def close(self) -> None:
        self.stop()
        self.comm.Free()

    def look(self) -> float:
        """One look of the thread; how long until the next."""
        limit_s, state = self.limit_s, self.state
        if limit_s == 0:
            return 1.0
        for_s = time.monotonic() - state.since_s
        if for_s > min(1.0, limit_s / 4):
            if self.talks:
                self._answer()
            if state.waits and for_s > limit_s * (1.0 if self.talks else ALONE):
                self._roll_call(state)
        return min(1.0, limit_s / 8)

    def _answer(self) -> None:
        """Tell every rank that has called what this one does."""
        self._sent = [(request, words) for request, words in self._sent if not request.Test()]
        status = MPI.Status()
        while self.comm.Iprobe(MPI.ANY_SOURCE, _CALL, status):
            number = np.empty(1, np.int64)
            self.comm.Recv(number, status.source, _CALL)
            state = self.state
            words = np.zeros(1, _WORDS)
            for_s = time.monotonic() - state.since_s
            words[0] = number[0], state.waits, for_s, state.share * self.limit_s, state.what.encode()[:64]
            self._send(words.view(np.uint8), status.source, _ANSWER)

    def _send(self, message: np.ndarray, target: int, tag: int) -> None:
        self._sent.append((self.comm.Isend(message, target, tag), message))

    def _roll_call(self, state: State) -> None:
        if not self.talks:
            _end(self.comm, f"a rank that rank {self.rank} waits for in {state.what} is silent; it cannot be named")
        answers = self._answers(state)
        if answers is None:
            return
        verdict = judge(answers, self.rank, self.size, time.monotonic() - state.since_s, state.what, self.limit_s)
        if not verdict:
            return
        first = min([self.rank, *(r for r, answer in answers.items() if answer.waits)])
        if first != self.rank and not self._stop.wait(2 * min(GRACE_S, self.limit_s)) and self.state is not state:
            return
        if not self._stop.is_set():
            _end(self.comm, verdict)

    def _answers(self, state: State) -> dict[int, Answer] | None:
        """Rank -> answer of those that answer in time; None if the main thread goes on meanwhile."""
        self._number += 1
        for r in range(self.size):
            if r != self.rank:
                self._send(np.array([self._number]), r, _CALL)
        answers: dict[int, Answer] = {}
        end_s = time.monotonic() + min(GRACE_S, max(self.limit_s, 1.0))
        status = MPI.Status()
        while len(answers) < self.size - 1 and time.monotonic() < end_s:
            self._answer()
            while self.comm.Iprobe(MPI.ANY_SOURCE, _ANSWER, status):
                words = np.zeros(1, _WORDS)
                self.comm.Recv(words.view(np.uint8), status.source, _ANSWER)
                number, waits, for_s, allowed_s, what = words[0].item()
                if number == self._number:
                    answers[status.source] = Answer(waits, for_s, allowed_s, what.decode(errors="replace"))
            if self.state is not state or self._stop.wait(0.01):
                return None
        return answers


class Note:
    """A context that notes what the main thread does, and afterwards that it does what it did before."""

    __slots__ = ("before", "dog", "share", "waits", "what")

    def __init__(self, dog: Watchdog, what: str, waits: bool, share: float) -> None:
        self.dog, self.what, self.waits, self.share = dog, what, waits, share

    def __enter__(self) -> None:
        self.before = self.dog.state
        self.dog.state = State(self.what, time.monotonic(), self.waits, self.share)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        what = f"after {self.what}" if self.waits else self.before.what
        share = self.before.share if not self.before.waits else 1.0
        self.dog.state = State(what, time.monotonic(), False, share)


def judge(answers: dict[int, Answer], rank: int, size: int, for_s: float, what: str, limit_s: float) -> str:
    """What is wrong, by the answers to the roll call of `rank`, which has waited `for_s` in `what`; "" to wait on."""
    silent = [r for r in range(size) if r != rank and r not in answers]
    late = [r for r, a in sorted(answers.items()) if not a.waits and a.for_s >= a.allowed_s]
    if silent:
        return f"{_ranks(silent)} no sign of life; {_others(rank, for_s, what)}"
    if late:
        busy = answers[late[0]]
        doing = f"rank {late[0]} has been at work for {busy.for_s:.0f} s without reaching the others ({busy.what})"
        return f"{doing}; {_others(rank, for_s, what)}"
    if all(answer.waits and answer.for_s >= limit_s for answer in answers.values()):
        places = [
            f"rank {r} in {w}" for r, w in sorted({rank: what, **{r: a.what for r, a in answers.items()}}.items())
        ]
        return f"all ranks wait for each other, {', '.join(places)}, for {for_s:.0f} s"
    return ""


def _ranks(ranks: list[int]) -> str:
    return f"rank {ranks[0]} gives" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} give"


def _others(rank: int, for_s: float, what: str) -> str:
    return f"rank {rank} has waited {for_s:.0f} s in {what}"


def _end(comm: MPI.Comm, verdict: str) -> None:
    cure = "all ranks end; look at that machine, or raise the watchdog's limit if the work takes that long"
    sys.stderr.write(f"astra-mpi: error: {verdict} (watchdog); {cure}\n")
    sys.stderr.flush()
    WITNESS.told()
    signal.alarm(10)  # the main thread sits in MPI, and Abort may hang too
    comm.Abort(_EXIT_CODE)
    os._exit(_EXIT_CODE)


def _watch(dog: weakref.ref[Watchdog], stop: threading.Event) -> None:
    nap_s = 0.1
    while not stop.wait(nap_s):
        watchdog = dog()
        if watchdog is None:
            return
        nap_s = watchdog.look()
        del watchdog


_DOGS: weakref.WeakSet[Watchdog] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for dog in list(_DOGS):
        dog.stop()
