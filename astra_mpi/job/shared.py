"""The batches of a job over replicas, which take them as they finish (docs/explanation/grid.md)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.errors import AstraError, collective, raise_together
from astra_mpi.inputs.sources import Source
from astra_mpi.job import log
from astra_mpi.job.desk import Desk, Finished
from astra_mpi.job.results import Results
from astra_mpi.job.tasks import Embed, Outputs, Part
from astra_mpi.ranks.broadcast import broadcast_batch, broadcast_text
from astra_mpi.ranks.grid import Groups
from astra_mpi.ranks.post import Letter, Post
from astra_mpi.ranks.signals import StopRequests
from astra_mpi.ranks.watched import waiting

if TYPE_CHECKING:
    from astra_mpi.replicas.replicas import Replicas

_NAP_S = 2e-4
#: of both ranks, until the answer to a question is there: MPI moves a large letter only where they look, first its
#: announcement, then the receiver's consent, then its contents
LOOKS = 5


def loop(
    model: Replicas,
    task: Embed,
    source: Source | None,
    results: Results | None,
    pending: Sequence[int],
    stop: StopRequests,
    finished: Finished,
) -> tuple[int, int | None]:
    """Collective: the pending batches -> the signal that ended the job early, 0 for none, and the last batch written.

    `source` and `results` are rank 0's; all other ranks have None. finished: called on rank 0 with each batch, its
    report and the number of its items. What fails on one replica is raised on all ranks.
    """
    world, held = model.comm, model.held()
    model.clock.meet(world)
    world.Barrier()
    post, desk = Post(world), None
    with collective(world):
        if source is not None and results is not None:
            at = post, model.groups.grid, model.clock, model.exchange.network
            desk = Desk(*at, held, pending, task, source, results, finished)
    clerk = Clerk(post, model, desk) if model.model.comm.Get_rank() == 0 else None
    failure: Exception | None = None
    try:
        while _batch(model, task, stop, clerk):
            pass
    except AstraError as exc:
        if not exc.collective:
            raise
        failure = exc
        if clerk is not None:
            clerk.leave(well=False)
    finally:
        model.model.meanwhile = lambda: None
    if desk is not None:
        with waiting(world, "batches of other replicas"):
            while not desk.queue.over:
                desk.look()
                time.sleep(_NAP_S)
        failure = failure or desk.failure
    with waiting(world, "letters to rank 0"):
        post.flush()
    post.close()
    raise_together(world, failure)
    told = json.loads(broadcast_text(world, json.dumps([desk.signum, desk.last] if desk else None)))
    return int(told[0]), told[1]


def _batch(model: Replicas, task: Embed, stop: StopRequests, clerk: Clerk | None) -> bool:
    """One more batch on this replica; False where there is none."""
    comm = model.model.comm
    signum, letter = stop.agreed(comm), None
    with collective(comm):
        if clerk is not None:
            letter = clerk.next(signum)
    head = json.loads(broadcast_text(comm, json.dumps(letter.head if letter else None)))
    if head is None:
        return False
    log.event("batch begins", batch=head["batch"] + 1, level=logging.DEBUG)
    arrays = letter.arrays if letter else {}
    inputs, mask = broadcast_batch(comm, arrays.get("inputs"), arrays.get("mask"))
    part = Part(range(*head["numbers"]), arrays["about"]) if letter else None
    outputs = task.outputs(inputs, mask, part)
    with collective(comm):
        if clerk is not None:
            clerk.hand_in(head["batch"], outputs, model.model.report)
    return True


def asks_at(n_blocks: int) -> int:
    """After so many blocks of a batch a replica asks for the next: half of them, or less if too few would follow."""
    return min(n_blocks // 2, max(n_blocks - LOOKS, 0))


class Clerk:
    """What the first rank of a replica asks of rank 0, and tells it."""

    def __init__(self, post: Post, model: Replicas, desk: Desk | None) -> None:
        """desk: of rank 0 itself, which looks at its letters whenever this one looks."""
        self.post, self.clock, self.desk = post, model.clock, desk
        self.groups: Groups = model.groups
        self.origin_s = model.clock.now()
        self._given: Letter | None = None
        self._asked = False
        self._heard: set[str] = set()
        self._n_looks, self._ask_at = 0, asks_at(len(model.blocks))
        model.model.meanwhile = self._between

    def _now_s(self) -> float:
        return self.clock.now() - self.origin_s

    def _between(self) -> None:
        """Between two blocks: the next batch is asked for early enough to be there in time."""
        self._n_looks += 1
        if self._n_looks >= self._ask_at:
            self._ask()
        self._look()

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            self._tell("ask")

    def _look(self) -> None:
        if self.desk is not None:
            self.desk.look()
            letters, self.desk.mine = self.desk.mine, []
        else:
            letters = list(self.post.letters())
        for letter in letters:
            self._heard.add(letter.head["what"])
            if letter.head["what"] == "batch":
                self._given = letter

    def next(self, signum: int) -> Letter | None:
        """The next batch; None: there is none, or `signum` or another replica ends the job."""
        if signum:
            self.leave(signum, well=False)
            return None
        self._ask()
        with waiting(self.groups.world, "the next batch"):
            while not (self._given or self._heard):
                self._look()
                time.sleep(_NAP_S)
        letter, self._given = self._given, None
        if letter is None or "halt" in self._heard:
            self.leave()
            return None
        self._heard.clear()
        self.clock.wait_until(self.origin_s + letter.head["arrives_s"])
        self._asked, self._n_looks, self._begin_s = False, 0, self._now_s()
        return letter

    def leave(self, signum: int = 0, well: bool = True) -> None:
        """This replica does no more batches, nor what it was given. well: nor need any other stop."""
        self._tell("leave", signum=signum, well=well)
        with waiting(self.groups.world, "the end of the job"):
            while "end" not in self._heard:
                self._look()
                time.sleep(_NAP_S)

    def hand_in(self, batch: int, outputs: Outputs, report: dict[str, Any]) -> None:
        now_s = self._now_s()
        span = {"begin_s": self._begin_s, "end_s": now_s}
        kept = {name: np.asarray(values) for name, values in outputs.items()}
        told = {"batch": batch, "seconds": now_s - self._begin_s, "span": span, "report": report}
        self._tell("done", kept, **told)

    def _tell(self, what: str, arrays: dict[str, np.ndarray] | None = None, **more: Any) -> None:
        head = {"what": what, "time_s": self._now_s(), **more}
        if self.desk is not None:
            self.desk.take(Letter(0, head, arrays or {}))
        else:
            self.post.send(0, head, arrays)
