"""Which GPU a rank works on: one per rank of a node, as far as they go."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.errors import InputError, collective

if TYPE_CHECKING:
    from mpi4py import MPI


def choose_gpu(cupy: Any, comm: MPI.Comm) -> str:
    """Collective: take the GPU of this rank's number on its node, and say what it is. A notice where ranks share one.

    InputError on all ranks where a rank has none. A scheduler that shows every task its own GPU is left in charge.
    """
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        rank, n_ranks = node.Get_rank(), node.Get_size()
        with collective(comm):
            n_gpus = _count(cupy)
            cupy.cuda.Device(rank % n_gpus).use()
            properties = cupy.cuda.runtime.getDeviceProperties(rank % n_gpus)
            mine = np.frombuffer(properties["uuid"][:16].ljust(16, b"\0"), np.uint8).copy()
        every = np.empty((n_ranks, 16), np.uint8)
        node.Allgather(mine, every)
    finally:
        node.Free()
    distinct = len(np.unique(every, axis=0))
    if rank == 0 and distinct < n_ranks:
        what = "one GPU" if distinct == 1 else f"{distinct} GPUs"
        sys.stderr.write(
            f"astra-mpi: {n_ranks} ranks of this node share {what}, and wait for each other; start one rank per GPU\n"
        )
    return properties["name"].decode()


def _count(cupy: Any) -> int:
    try:
        return cupy.cuda.runtime.getDeviceCount()
    except Exception as exc:  # CUDARuntimeError, of a module that may not even load
        raise InputError(
            f"backend cuda: no GPU can be used here ({exc}); look at nvidia-smi, or take backend numpy"
        ) from exc
