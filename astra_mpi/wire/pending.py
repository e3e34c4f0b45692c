"""Exchanges under way: begun by `Exchange`, waited for by what needs them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from mpi4py import MPI

from astra_mpi.device.staging import Staging
from astra_mpi.device.xp import module_of
from astra_mpi.network.clock import WallClock
from astra_mpi.network.link import Link
from astra_mpi.network.missing import Missing
from astra_mpi.partition import Hears
from astra_mpi.ranks.watched import waiting
from astra_mpi.wire.laps import Laps
from astra_mpi.wire.mailbox import Mailbox
from astra_mpi.wire.messages import Plan, Requests


class Begins(Protocol):
    """Of the `Exchange` that began them, what exchanges under way need."""

    comm: MPI.Comm
    rank: int
    size: int
    n_started: int
    clock: WallClock
    link: Link | None
    laps: Laps
    missing: Missing
    staging: Staging | None

    def ended(self, pending: Pending) -> None: ...


class Pending:
    """An all-gather under way."""

    def __init__(
        self,
        exchange: Begins,
        plan: Plan | Mailbox,
        counts: tuple[int, ...],
        may_miss: bool,
        forward: Hears,
        staging: Staging | None,
        turn: int,
    ) -> None:
        """turn: of the exchanges that may be under way at once."""
        self._exchange, self.plan, self._counts, self._staging = exchange, plan, counts, staging
        self._turn = turn
        self.may_miss, self._forward = may_miss, forward
        self._block, self._sent = exchange.n_started, False
        self._start_s = exchange.clock.now()
        #: (P,) ranks whose messages did not come, or not in time; known after `wait`
        self.missing = np.zeros(exchange.size, dtype=bool)
        self.over = False

    def send(self) -> None:
        """Let the message go, unless it has gone. One in device memory goes when what the rank computes meanwhile has
        been queued there, so that neither waits for the other."""
        exchange, plan = self._exchange, self.plan
        if self._sent:
            return
        self._sent = True
        if self._staging is not None:
            self._staging.taken()
            exchange.laps.mark("encode")
        if exchange.link is not None:
            now_s = exchange.clock.now()
            with exchange.clock.aside():
                plan.stamps[exchange.rank] = exchange.link.depart(now_s, self._counts, self._forward)
        plan.start()
        exchange.laps.mark("exchange")

    def wait(self) -> list[np.ndarray]:
        """The messages of all ranks, uint8 views into the receive buffer; undefined where `missing` or not heard.

        Where messages are made on a device, they are there again.
        """
        self.send()
        exchange, plan, clock = self._exchange, self.plan, self._exchange.clock
        if exchange.staging is not None and clock.name == "virtual":
            exchange.staging.settle()  # what is queued is this rank's work, not part of its wait
            exchange.laps.mark("attention")
        limit_s = exchange.missing.limit(clock.now()) if self.may_miss else np.inf
        if isinstance(plan, Mailbox):
            plan.limit_s, plan.now = limit_s, clock.now
        with waiting(exchange.comm, f"exchange {self._block}"):
            clock.wait(plan)
        link, forward = exchange.link, self._forward
        with clock.aside():
            arrivals_s = plan.stamps if link is None else link.arrivals(plan.stamps, self._counts, forward)
            if self.may_miss:
                self.missing, ready_s = exchange.missing.judge(self._block, arrivals_s, limit_s, forward)
            else:
                ready_s = float(arrivals_s.max())
        clock.wait_until(ready_s)
        exchange.ended(self)
        self.over = True
        exchange.laps.in_flight(self._start_s)
        exchange.laps.mark("exchange")
        return plan.parts if self._staging is None else self._staging.give(plan.parts, self._turn)


class Summing:
    """A sum over ranks under way. Several may be, and are waited for in the order in which they start."""

    def __init__(self, exchange: Begins, share: np.ndarray) -> None:
        self._exchange, self._share = exchange, share
        self._total: np.ndarray | None = None
        self.over = exchange.size == 1
        if self.over:
            self._total = share
        elif exchange.staging is not None:
            self._total = exchange.staging.reduced(share, lambda part: self._start(part)._wait())
        else:
            self._start(share)

    def _start(self, part: np.ndarray) -> Summing:
        exchange = self._exchange
        self._sum = module_of(part).empty_like(part)
        self._start_s, self._last_s = exchange.clock.now(), np.empty(1)
        requests = [exchange.comm.Iallreduce(part, self._sum)]
        if exchange.link is not None:
            self._begin_s = np.array([exchange.link.ready(self._start_s)])
            requests.append(exchange.comm.Iallreduce(self._begin_s, self._last_s, op=MPI.MAX))
        self._requests = Requests(requests)
        return self

    def _wait(self) -> np.ndarray:
        exchange, link = self._exchange, self._exchange.link
        with waiting(exchange.comm, "a sum"):
            exchange.clock.wait(self._requests)
        if link is not None:
            exchange.clock.wait_until(link.reduced(link.ready(float(self._last_s[0])), self._sum.nbytes))
        exchange.laps.in_flight(self._start_s)
        exchange.laps.mark("exchange")
        return self._sum

    def wait(self) -> np.ndarray:
        """The sum, on every rank."""
        if self._total is None:
            self._total = self._wait()
        self.over = True
        return self._total
