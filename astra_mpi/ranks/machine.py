"""Which ranks share a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI


def ranks_here(comm: MPI.Comm) -> int:
    """Collective: how many ranks of `comm` are on this machine, with this one."""
    from mpi4py import MPI

    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    n = int(here.Get_size())
    here.Free()
    return n
