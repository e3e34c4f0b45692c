"""Where arrays live and which kernels work on them. Chosen once, at load."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from astra_mpi.errors import InputError, collective, raise_together

if TYPE_CHECKING:
    from mpi4py import MPI

BACKENDS = ("numpy", "reference")


@dataclass(frozen=True)
class Backend:
    """A named pair of array module and kernels."""

    name: str
    xp: ModuleType
    kernels: ModuleType


def get_backend(name: str, comm: MPI.Comm) -> Backend:
    """Collective. "numpy": Numba kernels; "reference": plain NumPy ones. InputError on another name.

    Rank 0 compiles into the on-disk cache first and the others then load from it: many ranks compiling the same
    kernels at once take twice as long.
    """
    if name not in BACKENDS:
        raise InputError(f"backend '{name}' is not available; use one of {', '.join(BACKENDS)}")
    if name == "reference":
        from astra_mpi.kernels import reference

        return Backend(name, np, reference)
    from astra_mpi.kernels import cpu

    failure: Exception | None = None
    try:
        if comm.Get_rank() == 0:
            cpu.warm_up()
    except Exception as exc:
        failure = exc
    turn = comm.Ibarrier()
    while not turn.Test():
        time.sleep(0.001)
    raise_together(comm, failure)
    with collective(comm):
        cpu.warm_up()
    return Backend(name, np, cpu)
