"""Threads per rank, set once before work starts."""

from __future__ import annotations

import os
import sys

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.ranks.launch import launched_rank


def set_threads(n_threads: int | None = None) -> int:
    """Limit OpenMP, Numba and the kernels' team to `n_threads` threads of this process; return the number in force.

    None: SLURM_CPUS_PER_TASK, else 1. BLAS gets one: the team shares its products (`kernels/cpu/_matmul.py`). Numba
    cannot exceed what it started with (the cores, or NUMBA_NUM_THREADS) and keeps to that; no kernel depends on it.
    InputError if the number is not positive.
    """
    import numba
    from threadpoolctl import threadpool_limits

    from astra_mpi.kernels.cpu import _team

    wanted = _slurm_threads() if n_threads is None else n_threads
    require(wanted >= 1, f"--threads {wanted}: at least one")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if wanted > cores and launched_rank() == 0:
        print(f"astra-mpi: {wanted} threads per rank on {cores} cores: they wait for each other", file=sys.stderr)
    numba.set_num_threads(min(wanted, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    _team.set_size(wanted)  # compiles, which may load one more BLAS
    threadpool_limits({"blas": 1, "openmp": wanted})
    return wanted


def _slurm_threads() -> int:
    text = os.environ.get("SLURM_CPUS_PER_TASK", "1")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"SLURM_CPUS_PER_TASK = '{text}' is not a positive integer; give --threads")
    return int(text)
