"""MPI messages as they are sent: persistent requests of an all-gather, planned once per shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from mpi4py import MPI

from astra_mpi.partition import Hears, displs, hears

_TAG, _STAMP_TAG = 1, 2


class Requests:
    """MPI requests that end together."""

    def __init__(self, requests: Sequence[MPI.Request]) -> None:
        self.requests = requests

    def wait(self) -> None:
        MPI.Request.Waitall(self.requests)

    def test(self) -> bool:
        return MPI.Request.Testall(self.requests)


def peers(rank: int, size: int, forward: Hears) -> tuple[list[int], list[int]]:
    """-> (ranks that this one hears, ranks that hear it), nearest first, so that not all send to the same one.

    forward: only ranks behind the sender need its message, as under causal attention, or whom it says.
    """
    sources, targets = ([(rank + i * step) % size for i in range(1, size)] for step in (-1, 1))
    return [s for s in sources if hears(rank, s, forward)], [t for t in targets if hears(t, rank, forward)]


class Plan(Requests):
    """Buffers of an all-gather and its persistent requests: one message to and one from every peer.

    Messages of codes are small enough to leave at once and to be received by the operating system while this rank
    computes. A collective in rounds would go on only inside MPI calls (docs/log/dated.md has the comparison).
    """

    def __init__(
        self,
        comm: MPI.Comm,
        counts: Sequence[int],
        stamped: bool = False,
        forward: Hears = False,
        empty: Callable[..., np.ndarray] = np.empty,
    ) -> None:
        rank, size = comm.Get_rank(), comm.Get_size()
        starts = displs(np.array(counts))
        self.received = empty(int(starts[-1]), dtype=np.uint8)
        self.parts = [self.received[a:b] for a, b in pairwise(starts)]
        self.stamps = np.full(size, -np.inf)  # when each rank began to send, for the emulated network
        sources, targets = peers(rank, size, forward)
        mine = slice(rank, rank + 1)
        requests = [comm.Recv_init(self.parts[s], s, _TAG) for s in sources]
        requests += [comm.Send_init(self.parts[rank], t, _TAG) for t in targets]
        if stamped:
            requests += [comm.Recv_init(self.stamps[s : s + 1], s, _STAMP_TAG) for s in sources]
            requests += [comm.Send_init(self.stamps[mine], t, _STAMP_TAG) for t in targets]
        super().__init__(requests)
        self._persistent = requests

    def start(self) -> None:
        MPI.Prequest.Startall(self._persistent)

    def settle(self) -> None:
        """All that was started has been waited for."""

    def free(self) -> None:
        for request in self.requests:
            request.Free()
