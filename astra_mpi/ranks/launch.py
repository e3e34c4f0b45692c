"""What the launcher (mpirun, srun) says, read from the environment without starting MPI."""

from __future__ import annotations

import os
import re

from astra_mpi.errors import InputError

#: what the names of launchers' variables begin with: a process without them is one of its own
LAUNCHER_PREFIXES = ("PMI", "OMPI_COMM_WORLD", "PRTE", "PMIX", "HYD", "MPI_LOCAL", "SLURM_PROCID", "SLURM_STEP")
# variables of Hydra and SLURM's PMI-2, of Open MPI, and of a SLURM job step
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
# of the processes on this machine
_LOCAL_SIZES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
_LOCAL_RANKS = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")


def launched_rank() -> int:
    """This process's number among those the launcher started; 0 without a launcher."""
    return _first(_RANKS, 0)


def launched_size() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return _first(_SIZES, 1)


def local_rank() -> int:
    """This process's number among those the launcher started on this machine; 0 without a launcher."""
    return _first(_LOCAL_RANKS, 0)


def local_size() -> int:
    """How many processes the launcher started on this machine; 1 if it does not say."""
    return _first(_LOCAL_SIZES, _slurm_local_size())


def _slurm_local_size() -> int:
    """From SLURM_STEP_TASKS_PER_NODE, such as 2(x3),1: two tasks on three nodes, then one."""
    counts: list[int] = []
    for count, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(times or 1)
    node = _first(("SLURM_NODEID",), 0)
    return counts[node] if node < len(counts) else 1


def task_counts() -> dict[str, int]:
    """Variable -> number of processes, of every launcher and scheduler that says one."""
    texts = {name: os.environ.get(name, "") for name in (*_SIZES, "SLURM_NTASKS")}
    return {name: int(text) for name, text in texts.items() if text.isdecimal()}


def check_alone(command: str) -> None:
    """InputError if `command`, which one process does, was started as several."""
    if launched_size() > 1:
        raise InputError(f"{command} is done by one process; run it without mpirun or srun")


def check_together(size: int) -> None:
    """InputError if MPI joined other processes (`size` of them) than the launcher started, or none of a SLURM job's."""
    started = _first(_SIZES, 0) or (_first(("SLURM_NTASKS",), 1) if size == 1 else size)
    if size != started:
        raise InputError(
            f"{started} processes were asked for, but MPI sees {'one' if size == 1 else size}; start with the mpirun "
            "of the MPI that mpi4py uses, or with srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI)"
        )


def _first(names: tuple[str, ...], default: int) -> int:
    values = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdecimal()), default)
