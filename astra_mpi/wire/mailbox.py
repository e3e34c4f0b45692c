"""An all-gather that a rank may leave before every message has come, used where exchanges have a deadline.

A message is a header (number of the exchange, time of departure) and its bytes. MPI keeps the messages of a pair of
ranks in order, so that a late one comes before the next and is known by its number: it is received and dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from mpi4py import MPI

from astra_mpi.partition import Hears
from astra_mpi.wire.messages import peers

_TAG = 3
_HEADER = np.dtype([("number", "i8"), ("departure_s", "f8")])
_POLL_S = 2e-5


class Mailbox:
    """Buffers of an all-gather of `counts` (P,) bytes, and the receive that is posted for every rank that is heard."""

    def __init__(self, comm: MPI.Comm, counts: Sequence[int], forward: Hears = False, turn: int = 0) -> None:
        """turn: mailboxes in use at once have different ones, so that neither gets what the other waits for."""
        self.tag = _TAG + turn
        self.comm, self.rank, self.size = comm, comm.Get_rank(), comm.Get_size()
        self._messages = [np.zeros(_HEADER.itemsize + n, np.uint8) for n in counts]
        self._headers = [message[: _HEADER.itemsize].view(_HEADER) for message in self._messages]
        self.parts = [message[_HEADER.itemsize :] for message in self._messages]
        self.stamps = np.full(self.size, -np.inf)  # when each rank began to send; inf: nothing has come
        self.number = -1  # of the exchange under way
        self.limit_s, self.now = np.inf, time.perf_counter
        self._others, self._targets = peers(self.rank, self.size, forward)
        self._posted: dict[int, MPI.Request] = {}
        self._received = dict.fromkeys(self._others, -1)  # number of the last message of each
        self._sent: list[tuple[MPI.Request, np.ndarray]] = []

    now: Callable[[], float]

    def start(self) -> None:
        self.number += 1
        departure_s = self.stamps[self.rank]
        self._headers[self.rank][0] = self.number, departure_s
        self.stamps[self._others] = np.inf
        self._sent = [(request, message) for request, message in self._sent if not request.Test()]
        for target in self._targets:
            message = self._messages[self.rank].copy()  # may still leave when the next exchange starts
            self._sent.append((self.comm.Isend(message, target, self.tag), message))
        self._post()

    def test(self) -> bool:
        """True once all messages of this exchange are here."""
        for r in list(self._posted):
            if self._posted[r].Test():
                del self._posted[r]
                self._received[r] = int(self._headers[r]["number"][0])
                if self._received[r] == self.number:
                    self.stamps[r] = self._headers[r]["departure_s"][0]
        self._post()
        return not self._posted

    def wait(self) -> None:
        """Until all messages of this exchange are here, or until `limit_s`."""
        while not self.test() and self.now() < self.limit_s:
            time.sleep(_POLL_S)

    def settle(self) -> None:
        """Receive all that other ranks have sent, and wait until what this rank has sent is gone."""
        while not self.test():
            time.sleep(_POLL_S)
        MPI.Request.Waitall([request for request, _ in self._sent])
        self._sent = []

    def free(self) -> None:
        self.settle()

    def _post(self) -> None:
        """A receive for every rank whose message of this exchange has not come."""
        for r in self._others:
            if r not in self._posted and self._received[r] < self.number:
                self._posted[r] = self.comm.Irecv(self._messages[r], r, self.tag)
