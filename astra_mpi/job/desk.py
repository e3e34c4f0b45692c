"""Rank 0's side of a job over replicas: between pieces of its own work it hands batches out and keeps what comes back.

A replica asks for batches, and the answer is a batch or "none". "halt" comes unasked. The last that a replica says is
that it leaves, and the last that it hears is "end".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from astra_mpi.inputs.sources import Source
from astra_mpi.job.queue import Queue
from astra_mpi.job.results import Results
from astra_mpi.job.tasks import Embed
from astra_mpi.network.clock import WallClock
from astra_mpi.network.spec import Network
from astra_mpi.ranks.grid import Grid
from astra_mpi.ranks.post import Letter, Post
from astra_mpi.replicas.report import Report, of_one

#: called with a batch, its report and the number of its items
Finished = Callable[[int, Mapping[str, Any], int], None]


class Desk:
    """Reads batches, writes results. Only rank 0 has one. What fails here is kept in `failure`, and ends the job."""

    def __init__(
        self,
        post: Post,
        grid: Grid,
        clock: WallClock,
        network: Network,
        held: Report,
        pending: Sequence[int],
        task: Embed,
        source: Source,
        results: Results,
        finished: Finished,
    ) -> None:
        """held: what ranks have at all times, for reports; finished(batch, its report, its items): to be told."""
        self.post, self.grid, self.clock = post, grid, clock
        self.held, self.task, self.source, self.results, self.finished = held, task, source, results, finished
        self.queue = Queue(pending, grid.replicas, in_time=clock.name == "virtual")
        self.line = Line(network)
        self.origin_s = clock.now()
        self.failure: Exception | None = None
        self.signum = 0
        self.last: int | None = None  # batch that was written
        self.mine: list[Letter] = []  # to this rank itself
        self._replicas = {grid.ranks_of(replica).start: replica for replica in range(grid.replicas)}

    def look(self) -> None:
        """What other ranks, and this one, have sent; then all answers that can be given."""
        for letter in self.post.letters():
            self.take(letter)
        for replica, part in self.queue.answers(self._now_s()):
            self._answer(replica, part)

    def _now_s(self) -> float:
        return self.clock.now() - self.origin_s

    def take(self, letter: Letter) -> None:
        """A letter to rank 0, of a replica's first rank."""
        try:
            self._take(self._replicas[letter.source], letter)
        except Exception as exc:
            self._fail(exc)

    def _take(self, replica: int, letter: Letter) -> None:
        head = letter.head
        at_s = head["time_s"] if self.queue.in_time else self._now_s()
        if head["what"] == "ask":
            self.queue.ask(replica, at_s)
        elif head["what"] == "leave":
            self.signum = max(self.signum, head["signum"])
            self.queue.leave(replica)
            self._send(replica, {"what": "end"})
            if not head["well"]:
                self._halt()
        else:
            self.queue.done(replica, head["batch"], head["seconds"], at_s)
            self._keep(replica, letter)

    def _keep(self, replica: int, letter: Letter) -> None:
        part, strings = letter.head["batch"], h5py.string_dtype()
        arrays = letter.arrays.items()
        outputs = {name: a.astype(strings) if a.dtype == object else a for name, a in arrays}
        report = of_one(letter.head["report"], self.grid, replica, self.held)
        report["span"] = {"run": self.results.lock.token, **letter.head["span"]}
        self.results.write(part, outputs, report)
        self.last = part
        first, end = self.results.span(part)
        self.finished(part, report, end - first)

    def _answer(self, replica: int, part: int | None) -> None:
        if part is None:
            self._send(replica, {"what": "none"})
            return
        try:
            span = range(*self.results.span(part))
            numbers = self.results.items[span.start : span.stop]
            inputs, mask = self.source.batch(span.start, span.stop)
            head = {"what": "batch", "batch": part, "numbers": [numbers.start, numbers.stop, numbers.step]}
            about = self.task.part(self.source, span, numbers).about
        except Exception as exc:
            self._fail(exc)
            self.queue.workers[replica].held.remove(part)
            self._send(replica, {"what": "none"})
            return
        self._send(replica, head, {"inputs": inputs, "mask": mask, "about": about})

    def _send(self, replica: int, head: dict[str, Any], arrays: dict[str, np.ndarray | None] | None = None) -> None:
        """With the time at which it arrives on an emulated network; nothing travels to this rank itself."""
        target = self.grid.ranks_of(replica).start
        known = {name: array for name, array in (arrays or {}).items() if array is not None}
        if target == 0:
            self.mine.append(Letter(0, head | {"arrives_s": 0.0}, known))
            return
        asked_s = self.queue.workers[replica].asked_s
        arrives_s = self.line.arrival_s(asked_s, sum(array.nbytes for array in known.values()))
        self.post.send(target, head | {"arrives_s": arrives_s}, known)

    def _fail(self, failure: Exception) -> None:
        self.failure = self.failure or failure
        self._halt()

    def _halt(self) -> None:
        """Nobody begins another batch."""
        if not self.queue.stopped:
            self.queue.stop()
            for replica, worker in enumerate(self.queue.workers):
                if not worker.over:
                    self._send(replica, {"what": "halt"})


class Line:
    """Rank 0's port on an emulated network, one letter after another: a question, then what it asks for."""

    def __init__(self, network: Network) -> None:
        self.network, self.sent_s = network, 0.0

    def arrival_s(self, asked_s: float, n_bytes: int) -> float:
        """When the answer to a question of `asked_s` is there, which rank 0 gives at once; 0: nothing is emulated."""
        if self.network.rate is None:
            return 0.0
        half_s = self.network.rtt_s / 2
        self.sent_s = self.network.rate.finish(max(asked_s + half_s, self.sent_s), n_bytes)
        return self.sent_s + half_s
