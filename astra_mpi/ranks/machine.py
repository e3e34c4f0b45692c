"""Which ranks share a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI


def ranks_here(comm: MPI.Comm, kind: int = 0) -> int:
    """Collective: how many ranks of `comm` on this machine, with this one, are of its `kind`."""
    from mpi4py import MPI

    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    alike = here.Split(kind)
    n = int(alike.Get_size())
    alike.Free()
    here.Free()
    return n
