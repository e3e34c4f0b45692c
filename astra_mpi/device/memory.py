"""Where the weights lie that products read: in large pages of memory, which ranks of a machine share if they can."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from astra_mpi.kernels.aligned import lasting, lasting_rows, row_floats
from astra_mpi.kernels.pages import SharedPages

if TYPE_CHECKING:
    from mpi4py import MPI

_NODES = Path("/sys/devices/system/node")


class Memory(NamedTuple):
    """moves: whether float32 weights leave the pages of their file, which ranks of a machine share. pages: of this rank
    and others of its machine with the same blocks, near the same memory; None: each has its own."""

    moves: bool = False
    pages: SharedPages | None = None

    def keep(self, array: np.ndarray) -> np.ndarray:
        """A copy of an array, or the one that another rank has made."""
        shared = None if self.pages is None or not array.nbytes else self.pages.keep(array)
        return lasting(array) if shared is None else shared

    def keep_rows(self, matrices: Sequence[np.ndarray]) -> np.ndarray:
        """The same of matrices of as many rows, side by side, with rows as `lasting_rows` has them."""
        shared = self._shared_rows(matrices)
        return lasting_rows(matrices) if shared is None else shared

    def move_rows(self, matrix: np.ndarray) -> np.ndarray:
        """A matrix of a file with rows as `lasting_rows` has them. It stays where it is if ranks share it there and
        have no room to share it here."""
        shared = self._shared_rows([matrix])
        if shared is None:
            return matrix if self.pages is not None else lasting_rows([matrix])
        return shared

    def _shared_rows(self, matrices: Sequence[np.ndarray]) -> np.ndarray | None:
        if self.pages is None:
            return None
        m, n = len(matrices[0]), sum(matrix.shape[1] for matrix in matrices)
        whole = np.zeros((m, row_floats(n)), np.float32)  # between rows too: they are compared
        np.concatenate(matrices, axis=1, out=whole[:, :n])
        shared = self.pages.keep(whole)
        return None if shared is None else shared[:, :n]


#: of weights that no other rank has
OWN = Memory()


def memory_here(comm: MPI.Comm, kind: int, n_bytes: int, emulated: bool) -> Memory:
    """Collective. kind: equal on ranks that hold the same blocks; n_bytes: what these take at most.

    emulated: each rank stands for a machine of its own. Then weights move in any case, and what ranks share is what the
    caches of one machine have to hold of them: each rank reads weights as if it was alone with them.
    """
    from mpi4py import MPI

    from astra_mpi.ranks.watched import waiting  # which starts MPI, that commands on files do without

    with waiting(comm, "other ranks of this machine"):
        here = comm.Split_type(MPI.COMM_TYPE_SHARED)
        alike = here.Split(kind)
        near = alike.Split(_node() + 1)  # memory of another socket is slower
        pages = _shared(near, n_bytes) if near.Get_size() > 1 else None
        moves = emulated or alike.Get_size() == 1 or pages is not None
        for made in (near, alike, here):
            made.Free()
    return Memory(moves, pages)


def _shared(comm: MPI.Comm, n_bytes: int) -> SharedPages | None:
    """Collective: pages of all ranks of `comm`, which are on one machine; None on all if one cannot have them."""
    from mpi4py import MPI

    pages = SharedPages.create(n_bytes) if comm.Get_rank() == 0 else None
    place = np.array(pages.place if pages else (0, 0, 0), np.int64)
    comm.Bcast(place)
    if comm.Get_rank() != 0 and place[0]:
        pages = SharedPages.join(*map(int, place))
    all_have = np.array([pages is not None], np.int64)
    comm.Allreduce(MPI.IN_PLACE, all_have, op=MPI.MIN)  # rank 0 keeps its descriptor until all have joined
    return pages if all_have[0] else None


def _node() -> int:
    """The part of the machine's memory that is near all cores this process may run on; -1: none is."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    for node in _NODES.glob("node*"):
        try:
            near = _cores((node / "cpulist").read_text())
        except (OSError, ValueError):
            continue
        if cores and cores <= near:
            return int(re.sub(r"\D", "", node.name))
    return -1


def _cores(listed: str) -> set[int]:
    """Those of a list such as 0-3,8."""
    spans = (span.split("-") for span in listed.strip().split(",") if span.strip())
    return {core for span in spans for core in range(int(span[0]), int(span[-1]) + 1)}
