"""Rows handed on from one stage of blocks to the next: a message from a rank to the one in the same place there, or to
several.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from astra_mpi.network.clock import WallClock
from astra_mpi.network.spec import Network
from astra_mpi.ranks.watched import waiting
from astra_mpi.wire.messages import Requests

_TAG = 5
#: `well` is false of a stage that failed: its rows mean nothing
_HEADER = np.dtype([("well", "i8"), ("departure_s", "f8")])
#: messages under way from one rank: more are waited for
_UNDER_WAY = 4


class Received(NamedTuple):
    """A message, and whether the stage that sent it is well."""

    data: np.ndarray  # uint8
    well: bool


class Hop:
    """Messages from ranks of one stage to this one, and from this one to those of the next, in order.

    On an emulated network a message crosses the sender's port, one after another, and then the receiver's.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        sources: Sequence[int],
        targets: Sequence[int],
        place: int,
        network: Network,
        clock: WallClock,
    ) -> None:
        """sources, targets: the ranks of the stages before and behind by their places, or none; place: this rank's."""
        self.comm, self.sources, self.targets, self.place, self.clock = comm, sources, targets, place, clock
        self.n_bytes = 0  # sent
        self._under_way: list[tuple[MPI.Request, np.ndarray]] = []
        self.connect(network)

    def connect(self, network: Network) -> None:
        """From now on messages go over `network`."""
        self.network, self._sent_s, self._received_s = network, -np.inf, -np.inf

    def send(self, data: np.ndarray, well: bool = True, places: Iterable[int] | None = None) -> None:
        """Begin to send uint8 (n,) to the ranks in these places, which know that it comes; None: to the one in the same
        place."""
        for place in (self.place,) if places is None else places:
            if self.targets:
                self._send(self.targets[place], data, well)

    def _send(self, target: int, data: np.ndarray, well: bool) -> None:
        while len(self._under_way) >= _UNDER_WAY * len(self.targets):
            with waiting(self.comm, "a stage behind this one"):
                self.clock.wait(Requests([self._under_way[0][0]]))
            self._under_way.pop(0)
        header, now_s = np.zeros(1, _HEADER), self.clock.now()
        departure_s = max(now_s, self._sent_s)
        header[0] = well, departure_s
        if self.network.rate is not None:
            self._sent_s = self.network.rate.finish(departure_s, data.nbytes)
        message = np.concatenate([header.view(np.uint8), data])
        self.n_bytes += data.nbytes
        self._under_way.append((self.comm.Isend(message, target, _TAG), message))

    def receive(self, place: int | None = None) -> Received:
        """Wait for the next message of the rank in this place of the stage before this one; None: in the same place."""
        coming = _Coming(self.comm, self.sources[self.place if place is None else place])
        with waiting(self.comm, "a stage before this one"):
            self.clock.wait(coming)
        message = coming.buffer
        assert message is not None
        well, departure_s = message[: _HEADER.itemsize].view(_HEADER)[0]
        data = message[_HEADER.itemsize :]
        if self.network.rate is not None:
            crossed_s = self.network.rate.finish(max(float(departure_s), self._received_s), data.nbytes)
            self._received_s = crossed_s
            self.clock.wait_until(crossed_s + self.network.rtt_s / 2)
        return Received(data, bool(well))

    def settle(self) -> None:
        """Wait until what was sent has left."""
        with waiting(self.comm, "a stage behind this one"):
            self.clock.wait(Requests([request for request, _ in self._under_way]))
        self._under_way = []


class _Coming:
    """A message of unknown size."""

    def __init__(self, comm: MPI.Comm, source: int) -> None:
        self.comm, self.source = comm, source
        self.buffer: np.ndarray | None = None
        self._request: MPI.Request | None = None

    def test(self) -> bool:
        if self._request is None:
            status = MPI.Status()
            message = self.comm.Improbe(self.source, _TAG, status)
            if message is None:
                return False
            self.buffer = np.empty(status.Get_count(MPI.BYTE), np.uint8)
            self._request = message.Irecv(self.buffer)
        return bool(self._request.Test())

    def wait(self) -> None:
        status = MPI.Status()
        message = self.comm.Mprobe(self.source, _TAG, status)
        self.buffer = np.empty(status.Get_count(MPI.BYTE), np.uint8)
        message.Recv(self.buffer)
