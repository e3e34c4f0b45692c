"""All that a forward pass exchanges. With its messages (`messages.py`, `mailbox.py`, `pending.py`) alone in
talking MPI there.

Messages are uint8. Counts and buffers are planned once per shape; bytes and seconds are counted at the call. An
exchange starts early and is waited for late, so that compute runs in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from astra_mpi.device.staging import Staging
from astra_mpi.errors import AstraError
from astra_mpi.network.link import Link, make_link
from astra_mpi.network.missing import Missing
from astra_mpi.network.spec import REAL, Network
from astra_mpi.partition import Hears, displs
from astra_mpi.ranks.watched import also_watched, waiting
from astra_mpi.wire.closing import Closing, Combine, merged, summed
from astra_mpi.wire.laps import Laps
from astra_mpi.wire.mailbox import Mailbox
from astra_mpi.wire.messages import Plan
from astra_mpi.wire.pending import Pending, Summing
from astra_mpi.wire.traffic import Traffic, traffic_report

#: plans of several shapes are kept while their buffers are smaller than this, and they are fewer
KEPT_BYTES, KEPT_PLANS = 1 << 20, 64
#: the attribute of a communicator that holds this package's duplicate of it
_KEY = MPI.Comm.Create_keyval(delete_fn=lambda comm, key, private: private.Free())


class Exchange:
    """All-gathers and sums of one model over a private duplicate of its communicator."""

    def __init__(
        self, comm: MPI.Comm, laps: Laps, missing: Missing | None = None, staging: Staging | None = None
    ) -> None:
        """staging: how messages in device memory get to MPI; None where arrays are the host's."""
        self.staging = staging
        self.comm, self.laps, self.clock = also_watched(_private(comm), comm), laps, laps.clock
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.missing = missing or Missing()
        self.closing = Closing(self.comm, self.clock)
        self._pending: list[Pending] = []  # under way, in the order in which they started
        self._plans: dict[tuple[tuple[int, ...], Hears, bool, int], Plan | Mailbox] = {}
        self.connect(REAL)
        self.n_started, self.traffic = 0, Traffic()

    def connect(self, network: Network) -> None:
        """Collective: from now on, exchanges go over `network`, whose trace begins now."""
        self._forget()
        self.network = network
        self.link: Link | None = make_link(network, self.rank, self.size)
        if self.link is not None:
            self.link.origin_s = self.clock.latest(self.comm)

    def reset(self, key: int = 0) -> None:
        """Start counting a new forward pass; collective. key: of the batch, what is lost at random depends on it."""
        if self._pending:
            raise AstraError("the last forward pass was interrupted in an exchange; load the model anew")
        self.settle()
        self.clock.meet(self.comm)
        if self.link is not None and self.link.ends:
            now_s = self.clock.latest(self.comm)
            self.link.check(now_s, collective=True)
        self.missing.reset(key, self.network.loss, self.rank, self.size)
        self.n_started, self.traffic = 0, Traffic()

    def count_anew(self) -> None:
        """What follows is counted apart from the forward pass before it."""
        self.n_started, self.traffic = 0, Traffic()

    def counted(self) -> list[float]:
        """This rank's counts of the pass, one row of what `report` takes."""
        return [*self.traffic.counts(), self.clock.speed, *self.missing.counted()]

    def report(self, every: np.ndarray) -> dict[str, Any]:
        """The counts (P, n) of all ranks, and what they were counted on."""
        sent, speed, missed = np.split(every.T, [4, 5])
        return {
            **traffic_report(sent),
            "network": self.network.text,
            "accounting": self.network.accounting if self.link else None,  # of what the emulated link charges
            "clock": self.clock.name,
            "speed": [float(factor) for factor in speed[0]],
            "missing": self.missing.report(missed),
        }

    def start(
        self,
        message: np.ndarray,
        counts: Sequence[int],
        may_miss: bool = False,
        forward: Hears = False,
        on_host: bool = False,
        at_once: int = 1,
    ) -> Pending:
        """Begin the all-gather of `message`, uint8 (counts[rank],); `counts` (P,) are bytes, the same on all ranks.

        So many exchanges of a pass are under way `at_once`, and waited for in the order in which they start; a receive
        buffer is valid until as many more have started. may_miss: its end need not wait for what is lost or late.
        forward: messages go to the ranks behind their sender only, or as it says. on_host: messages are the host's,
        also where arrays are a device's.
        """
        if self.link is not None:
            self.link.check(self.clock.now())
        return self._start(message, counts, may_miss, forward, on_host, at_once)

    def _start(
        self, message: np.ndarray, counts: Sequence[int], may_miss: bool, forward: Hears, on_host: bool, at_once: int
    ) -> Pending:
        counts = tuple(int(n) for n in counts)
        if len(self._pending) >= at_once:
            raise RuntimeError("an exchange is under way; wait for it first")
        if message.nbytes != counts[self.rank]:
            raise ValueError(f"message of {message.nbytes} bytes, planned {counts[self.rank]}")
        may_miss = may_miss and self.loses
        staging = None if on_host else self.staging
        turn = self.n_started % at_once
        plan = self._planned(counts, forward, staging, may_miss and self._leaves_early, turn)
        pending = Pending(self, plan, counts, may_miss, forward, staging, turn)
        self._pending.append(pending)
        self.n_started += 1
        self.traffic.gathered(counts, self.rank, forward)
        if staging is None:
            plan.parts[self.rank][:] = message
            pending.send()
        else:
            staging.take(message, plan.parts[self.rank])
        return pending

    @property
    def _leaves_early(self) -> bool:
        """A rank goes on while messages are on their way. A virtual clock decides by times, with all messages here."""
        return self.missing.deadline_s is not None and self.clock.name == "wall"

    def _planned(
        self, counts: tuple[int, ...], forward: Hears, staging: Staging | None, leaves_early: bool, turn: int
    ) -> Plan | Mailbox:
        """turn: of the exchanges that may be under way at once; each has buffers of its own."""
        key = counts, forward, staging is None, turn
        if key not in self._plans or isinstance(self._plans[key], Mailbox) != leaves_early:
            early = leaves_early or any(isinstance(plan, Mailbox) for plan in self._plans.values())
            many = len(self._plans) >= KEPT_PLANS
            if early or many or sum(sum(planned) for planned, *_ in self._plans) + sum(counts) > KEPT_BYTES:
                self._forget()
            self._plans[key] = (
                Mailbox(self.comm, counts, forward, turn) if leaves_early else self._plan(counts, forward, staging)
            )
        return self._plans[key]

    def _plan(self, counts: tuple[int, ...], forward: Hears, staging: Staging | None) -> Plan:
        empty = np.empty if staging is None else staging.message_buffer
        return Plan(self.comm, counts, stamped=self.link is not None, forward=forward, empty=empty)

    def _forget(self) -> None:
        """All plans but those of exchanges under way."""
        busy = [pending.plan for pending in self._pending]
        kept = {key: plan for key, plan in self._plans.items() if plan in busy}
        for key, plan in self._plans.items():
            if key not in kept:
                plan.free()
        self._plans = kept

    def ended(self, pending: Pending) -> None:
        """It has been waited for."""
        self._pending.remove(pending)

    @property
    def loses(self) -> bool:
        """Whether messages can be missed at all."""
        return self.network.loss > 0 or self.missing.deadline_s is not None

    def settle(self) -> None:
        """Receive what came too late; every rank has started the same exchanges."""
        with waiting(self.comm, "late messages"):
            for plan in self._plans.values():
                plan.settle()

    def sum(self, share: np.ndarray, failed: bool) -> tuple[np.ndarray, bool]:
        """Sum `share` (B, D) float32 over ranks; the second answer says whether any rank passed `failed`.

        Every forward pass ends here, so a failure on one rank reaches the others without a collective of its own.
        """
        total, failed = self._combined(share.reshape(-1, 1), summed, failed, share.nbytes)
        return total.reshape(share.shape), failed

    def merge(self, share: np.ndarray, n_heads: int, failed: bool) -> tuple[np.ndarray, bool]:
        """`sum`, or of softmaxes over what each rank has their exact merge.

        share (B, H d + 2 H) float32: weighted values, maxima of the scores (-inf where there are none), sums of the
        weights -> (B, H d) merged, on every rank. With n_heads = 0 shares are just summed.
        """
        if not n_heads:
            return self.sum(share, failed)
        values, peaks, sums = np.split(share, [-2 * n_heads, -n_heads], axis=1)
        units = (values.reshape(*peaks.shape, -1), peaks[:, :, None], sums[:, :, None])
        flat = np.concatenate(units, axis=2).reshape(peaks.size, -1)  # (B H, d + 2)
        total, failed = self._combined(flat, merged, failed, share.nbytes)
        return total.reshape(values.shape), failed

    def _combined(self, units: np.ndarray, combine: Combine, failed: bool, n_bytes: int) -> tuple[np.ndarray, bool]:
        total, failed = self.closing.combined(units, combine, failed, self.link)
        self.traffic.other_bytes += n_bytes if self.size > 1 else 0
        self.laps.mark("exchange")
        return total, failed

    def start_sum(self, share: np.ndarray, class_bytes: int = 0) -> Summing:
        """Begin to sum `share` (n, D) float32 over ranks: a block exchange, but for the `class_bytes` of class tokens
        in it. `share` is not to change until it has been waited for. What is on a device is summed at once."""
        if self.size > 1:
            self.n_started += 1
            self.traffic.reduced(share.nbytes - class_bytes, self.size)
            self.traffic.other_bytes += class_bytes
        return Summing(self, share)

    def as_class_bytes(self, n_bytes: int) -> None:
        """Of what this rank contributed last, so many bytes are class tokens': they are counted apart."""
        self.traffic.contributed_bytes -= n_bytes
        self.traffic.other_bytes += n_bytes

    def start_empty(
        self, counts: Sequence[int], may_miss: bool = False, forward: Hears = False, at_once: int = 1
    ) -> Pending:
        """After a failure on this rank: `start` with a message of zeros, so that no other rank hangs."""
        return self._start(np.zeros(counts[self.rank], dtype=np.uint8), counts, may_miss, forward, False, at_once)

    def drain(
        self,
        counts: Sequence[int],
        n_exchanges: int,
        may_miss: bool = False,
        forward: Hears = False,
        on_host: bool = False,
        at_once: int = 1,
    ) -> None:
        """After a failure on this rank: take part in the remaining exchanges, so that no other rank hangs."""
        while self._pending:
            self._pending[0].wait()
        while self.n_started < n_exchanges:
            self._start(np.zeros(counts[self.rank], dtype=np.uint8), counts, may_miss, forward, on_host, at_once).wait()

    def room(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
        """On rank 0, room for rows (n_r, D) of every rank; None elsewhere."""
        return np.empty((int(counts.sum()), rows.shape[1]), rows.dtype) if self.rank == 0 else None

    def gather_rows(self, rows: np.ndarray, counts: np.ndarray, every: np.ndarray | None) -> None:
        """Rows (n_r, D) float32 of every rank, rank after rank, into rank 0's `every`. Not timed."""
        width = rows.shape[1]
        self.comm.Gatherv(rows, [every, counts * width, displs(counts * width)[:-1], MPI.FLOAT])


def _private(comm: MPI.Comm) -> MPI.Comm:
    """The duplicate of `comm` that this package talks on, made once and kept with it. Collective."""
    private = comm.Get_attr(_KEY)
    if not isinstance(private, MPI.Comm):
        private = comm.Dup()
        comm.Set_attr(_KEY, private)
    return private
