"""The only file that talks MPI in the forward pass.

Messages are uint8. Counts and buffers are planned once per shape; bytes and seconds are counted at the call. An
exchange starts early and is waited for late, so that compute runs in between.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from mpi4py import MPI

from astra_mpi.partition import displs
from astra_mpi.report import Laps

if TYPE_CHECKING:
    from collections.abc import Sequence

_TAG = 1
#: the attribute of a communicator that holds this package's duplicate of it
_KEY = MPI.Comm.Create_keyval(delete_fn=lambda comm, key, private: private.Free())


class Exchange:
    """All-gathers of one model over a private duplicate of its communicator."""

    def __init__(self, comm: MPI.Comm, laps: Laps) -> None:
        self.comm, self.laps = _private(comm), laps
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._pending: Pending | None = None
        self._plans: dict[tuple[int, ...], Plan] = {}
        self.reset()

    def reset(self) -> None:
        """Start counting a new forward pass."""
        self.n_started = 0
        self.contributed_bytes = 0  # what this rank put into the block exchanges
        self.other_bytes = 0  # class tokens and pooling

    def start(self, message: np.ndarray, counts: Sequence[int]) -> Pending:
        """Begin the all-gather of `message`, uint8 (counts[rank],); `counts` (P,) are bytes, the same on all ranks.

        One exchange is under way at a time; its receive buffer is valid until the next one starts.
        """
        counts = tuple(int(n) for n in counts)
        if message.nbytes != counts[self.rank]:
            raise ValueError(f"message of {message.nbytes} bytes, planned {counts[self.rank]}")
        if counts not in self._plans:
            for plan in self._plans.values():
                plan.free()
            self._plans = {counts: self._plan(counts)}
        plan = self._plans[counts]
        plan.parts[self.rank][:] = message
        plan.start()
        self.n_started += 1
        self.contributed_bytes += message.nbytes
        self._pending = Pending(self, plan)
        self.laps.mark("exchange")
        return self._pending

    def _plan(self, counts: tuple[int, ...]) -> Plan:
        return Plan(self.comm, counts)

    def sum(self, share: np.ndarray, failed: bool) -> tuple[np.ndarray, bool]:
        """Sum `share` (B, D) float32 over ranks; the second answer says whether any rank passed `failed`.

        Every forward pass ends here, so a failure on one rank reaches the others without a collective of its own.
        """
        sent = np.append(share.ravel(), np.float32(failed))
        total = np.empty_like(sent)
        self.comm.Allreduce(sent, total)
        self.other_bytes += share.nbytes if self.size > 1 else 0
        self.laps.mark("exchange")
        return total[:-1].reshape(share.shape), total[-1] > 0

    def drain(self, counts: Sequence[int], n_exchanges: int) -> None:
        """After a failure on this rank: take part in the remaining exchanges, so that no other rank hangs."""
        if self._pending is not None:
            self._pending.wait()
        while self.n_started < n_exchanges:
            self.start(np.zeros(counts[self.rank], dtype=np.uint8), counts).wait()

    def gather_rows(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
        """Rows (n_r, D) float32 of every rank, rank after rank, on rank 0; None elsewhere. Not timed."""
        width = rows.shape[1]
        every = np.empty((int(counts.sum()), width), rows.dtype) if self.rank == 0 else None
        self.comm.Gatherv(np.ascontiguousarray(rows), [every, counts * width, displs(counts * width)[:-1], MPI.FLOAT])
        return every


class Plan:
    """Buffers of an all-gather and its persistent requests: one message to and one from every other rank.

    Messages of codes are small enough to leave at once and to be received by the operating system while this rank
    computes. A collective in rounds would go on only inside MPI calls (docs/log.md has the comparison).
    """

    def __init__(self, comm: MPI.Comm, counts: Sequence[int]) -> None:
        rank, size = comm.Get_rank(), comm.Get_size()
        starts = displs(np.array(counts))
        self.received = np.empty(starts[-1], dtype=np.uint8)
        self.parts = [self.received[a:b] for a, b in pairwise(starts)]
        # nearest neighbours first, so that not all ranks send to the same one
        away = range(1, size)
        self.requests = [
            *(comm.Recv_init(self.parts[rank - i], (rank - i) % size, _TAG) for i in away),
            *(comm.Send_init(self.parts[rank], (rank + i) % size, _TAG) for i in away),
        ]

    def start(self) -> None:
        MPI.Prequest.Startall(self.requests)

    def wait(self) -> None:
        MPI.Prequest.Waitall(self.requests)

    def free(self) -> None:
        for request in self.requests:
            request.Free()


class Pending:
    """An all-gather under way."""

    def __init__(self, exchange: Exchange, plan: Plan) -> None:
        self._exchange, self._plan = exchange, plan
        self._start_s = time.perf_counter()

    def wait(self) -> list[np.ndarray]:
        """The messages of all ranks, uint8 views into the receive buffer."""
        self._plan.wait()
        self._exchange._pending = None
        self._exchange.laps.in_flight(self._start_s)
        self._exchange.laps.mark("exchange")
        return self._plan.parts


def _private(comm: MPI.Comm) -> MPI.Comm:
    """The duplicate of `comm` that this package talks on, made once and kept with it. Collective."""
    private = comm.Get_attr(_KEY)
    if not isinstance(private, MPI.Comm):
        private = comm.Dup()
        comm.Set_attr(_KEY, private)
    return private
