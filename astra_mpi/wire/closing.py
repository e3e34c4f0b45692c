"""How ranks end a forward pass: what each has a share of is combined, in the order of ranks, on every rank.

A small message goes from every rank to every rank, which takes one hop. A large one is cut into as many parts as there
are ranks: a rank combines the part that is its own, and tells all the others, in a second hop. The bits of the answer
are the same either way, and on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from mpi4py import MPI

from astra_mpi.network.clock import WallClock
from astra_mpi.network.link import Link
from astra_mpi.partition import displs, even
from astra_mpi.ranks.watched import waiting
from astra_mpi.wire.messages import Requests, peers

_TAG = 31
#: when the sender's port was free for it, and whether the sender has failed
_HEADER = np.dtype([("ready_s", "f8"), ("failed", "i8")])
#: on a network that nobody has described: what one hop may send more than two hops would
_SPARE_BYTES = 1 << 14

#: what all ranks have of some units (P, u, w) -> the units (u, w or fewer)
Combine = Callable[[np.ndarray], np.ndarray]


class Closing:
    """The end of a pass on the ranks of one communicator."""

    def __init__(self, comm: MPI.Comm, clock: WallClock) -> None:
        self.comm, self.clock = comm, clock
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.peers = peers(self.rank, self.size, False)

    def combined(self, units: np.ndarray, combine: Combine, failed: bool, link: Link | None) -> tuple[np.ndarray, bool]:
        """Collective: `combine` of the units (u, w) float32 of all ranks, on every rank; whether any rank has failed.

        combine: computes a unit from what ranks have of it, whatever others are computed beside it.
        """
        if self.size == 1:
            return combine(units[None]), failed
        if self.one_hop(units.nbytes, link):
            every, failed = self._hop([units] * self.size, [units] * self.size, failed, link, units.nbytes)
            return combine(np.stack(every)), failed
        ends = displs(even(len(units), self.size))
        parts = [units[a:b] for a, b in pairwise(ends)]
        every, failed = self._hop(parts, [parts[self.rank]] * self.size, failed, link, units.nbytes)
        own = combine(np.stack(every))
        made = [np.empty((len(part), own.shape[1]), own.dtype) for part in parts]
        told, failed = self._hop([own] * self.size, made, failed, link, units.nbytes)
        return np.concatenate(told), failed

    def one_hop(self, n_bytes: int, link: Link | None) -> bool:
        """Whether shares of so many bytes go to every rank as they are: the same on all ranks."""
        if link is not None:
            return link.one_hop(n_bytes)
        return (self.size - 1) * (self.size - 2) * n_bytes <= _SPARE_BYTES * self.size

    def _hop(
        self, outgoing: Sequence[np.ndarray], like: Sequence[np.ndarray], failed: bool, link: Link | None, n_bytes: int
    ) -> tuple[list[np.ndarray], bool]:
        """One message to every rank, `outgoing`, and one from every rank, shaped `like` these; n_bytes: of a share."""
        header = np.zeros(1, _HEADER)
        header[0] = (0.0 if link is None else link.ready(self.clock.now())), failed
        front = header.view(np.uint8)
        packed = {id(part): np.concatenate([front, part.reshape(-1).view(np.uint8)]) for part in outgoing}
        sent = [packed[id(part)] for part in outgoing]
        came = [np.empty(front.nbytes + part.nbytes, np.uint8) for part in like]
        came[self.rank][:] = sent[self.rank]
        sources, targets = self.peers
        requests = [self.comm.Irecv(came[s], s, _TAG) for s in sources]
        requests += [self.comm.Isend(sent[t], t, _TAG) for t in targets]
        with waiting(self.comm, "a sum"):
            self.clock.wait(Requests(requests))
        headers = np.concatenate([message[: front.nbytes].view(_HEADER) for message in came])
        if link is not None:
            self.clock.wait_until(link.hopped(float(headers["ready_s"].max()), n_bytes))
        every = [m[front.nbytes :].view(part.dtype).reshape(part.shape) for m, part in zip(came, like, strict=True)]
        return every, bool(headers["failed"].any())


def summed(every: np.ndarray) -> np.ndarray:
    """(P, u, w) -> (u, w), rank after rank."""
    total = every[0].copy()
    for share in every[1:]:
        total += share
    return total


def merged(every: np.ndarray) -> np.ndarray:
    """Softmaxes over what each rank has, (P, u, d + 2): weighted values, maximum of the scores (-inf where there are
    none), sum of the weights -> over all, (u, d)."""
    values, peaks, sums = every[:, :, :-2], every[:, :, -2:-1], every[:, :, -1:]
    with np.errstate(invalid="ignore", divide="ignore"):  # a batch whose forward pass failed everywhere
        scale = np.exp(peaks - peaks.max(axis=0))
        merged: np.ndarray = summed(values * scale) / summed(sums * scale)
    return merged
