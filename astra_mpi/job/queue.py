"""Which replica computes which batch: in order, to whoever asks first, and near the end to whoever ends first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median_low

#: batches that say how fast a replica is now
_RECENT = 5


@dataclass
class Worker:
    """What is known of a replica."""

    asked_s: float = 0.0  # when it last asked for a batch
    asks: bool = False  # and has no answer yet
    held: list[int] = field(default_factory=list)  # batches it was given and has not finished
    since_s: float = 0.0  # when it began the first of these
    recent_s: list[float] = field(default_factory=list)  # what its last batches took
    over: bool = False  # it has left

    @property
    def batch_s(self) -> float | None:
        """Seconds that a batch takes it, but for an odd one such as the first; None: not known."""
        return median_low(self.recent_s) if self.recent_s else None

    def free_s(self, now_s: float) -> float:
        """When it will have finished what it holds."""
        return max(now_s, self.since_s + len(self.held) * (self.batch_s or 0.0)) if self.held else now_s


class Queue:
    """The pending batches of a job, for replicas that ask for one when they are about to finish another.

    in_time: answers follow the order of the times at which replicas ask, whenever their questions arrive; for a clock
    that is not the wall's.
    """

    def __init__(self, parts: Iterable[int], n_replicas: int, in_time: bool = False) -> None:
        self.parts, self.in_time = list(parts), in_time
        self.workers = [Worker() for _ in range(n_replicas)]
        self.stopped = False

    def ask(self, replica: int, now_s: float) -> None:
        worker = self.workers[replica]
        worker.asks, worker.asked_s = True, max(now_s, worker.asked_s)

    def done(self, replica: int, part: int, seconds: float, now_s: float) -> None:
        """A replica has finished a batch, which took it so long."""
        worker = self.workers[replica]
        worker.held.remove(part)
        worker.recent_s = [*worker.recent_s, seconds][-_RECENT:]
        worker.since_s = now_s

    def stop(self) -> None:
        """No more batches are given out."""
        self.stopped = True

    def leave(self, replica: int) -> None:
        """A replica does no more; what it holds stays undone."""
        worker = self.workers[replica]
        worker.over, worker.asks, worker.held = True, False, []

    @property
    def over(self) -> bool:
        """Whether every replica has left."""
        return all(worker.over for worker in self.workers)

    def answers(self, now_s: float) -> list[tuple[int, int | None]]:
        """Replica and batch, None for the end, of all questions that can be answered now."""
        given: list[tuple[int, int | None]] = []
        while (replica := self._next(now_s)) is not None:
            worker = self.workers[replica]
            worker.asks = False
            if self.stopped or not self.parts:
                given.append((replica, None))
                continue
            if not worker.held:
                worker.since_s = max(worker.asked_s, worker.since_s) if self.in_time else now_s
            worker.held.append(self.parts.pop(0))
            given.append((replica, worker.held[-1]))
        return given

    def _next(self, now_s: float) -> int | None:
        """Whose question is answered next, if any is."""
        asking = [i for i, worker in enumerate(self.workers) if worker.asks]
        if self.stopped or not self.parts:
            return asking[0] if asking else None
        asking.sort(key=lambda i: self.workers[i].asked_s)
        if self.in_time:  # one that is at work may ask at an earlier time than those that have asked
            earliest_s = min((w.asked_s for w in self.workers if not (w.asks or w.over)), default=float("inf"))
            asking = [i for i in asking if self.workers[i].asked_s <= earliest_s]
        for i in asking:
            if self._gains(i, self.workers[i].asked_s if self.in_time else now_s):
                return i
        return None

    def _gains(self, replica: int, now_s: float) -> bool:
        """Whether the job does not end later if this replica takes a batch than if it leaves all to the others."""
        worker = self.workers[replica]
        others = [w for i, w in enumerate(self.workers) if i != replica and not w.over]
        if worker.batch_s is None or any(w.batch_s is None for w in others) or not others:
            return True
        ends_s = worker.free_s(now_s) + worker.batch_s
        n, rate = len(self.parts), sum(1 / max(w.batch_s or 0.0, 1e-9) for w in others)
        if ends_s <= now_s + n / rate:  # as if the others were never between two batches
            return True
        return ends_s <= _last_s(others, n, now_s)


def _last_s(workers: list[Worker], n: int, now_s: float) -> float:
    """When the last of n batches is finished, each by whoever has finished it first."""
    free_s = [worker.free_s(now_s) for worker in workers]
    last_s = now_s
    for _ in range(n):
        ends_s = [free + (worker.batch_s or 0.0) for free, worker in zip(free_s, workers, strict=True)]
        i = min(range(len(ends_s)), key=ends_s.__getitem__)
        free_s[i], last_s = ends_s[i], max(last_s, ends_s[i])
    return last_s
