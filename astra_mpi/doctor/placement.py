"""Where this rank runs: host, cores, CPU quota, threads, and the versions it runs with."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astra_mpi.job.summary import versions
from astra_mpi.ranks.launch import local_size, task_counts
from astra_mpi.ranks.shared_memory import FOLDER, room_bytes, shortage

if TYPE_CHECKING:
    from mpi4py import MPI


def placement(comm: MPI.Comm, files: list[str]) -> dict[str, Any]:
    """Facts about this rank as JSON types; files as size and sha256, or why they cannot be read."""
    from mpi4py import MPI

    return {
        "rank": comm.Get_rank(),
        "host": MPI.Get_processor_name(),
        "cpus": os.cpu_count() or 1,
        "cores": sorted(os.sched_getaffinity(0)),
        "quota": cpu_quota(),
        "threads": threads_in_force(),
        "tasks": task_counts(),
        "versions": versions(),
        "shared_memory": _shared_memory(MPI.Get_library_version()),
        "files": {path: _digest(path) for path in files},
    }


def _shared_memory(library: str) -> tuple[bool, str, str]:
    """Of this machine, as it was before MPI took its part: whether it suffices, what was found, the cure."""
    free = room_bytes()
    lacking = shortage(library, local_size(), free)
    if lacking is not None:
        return False, lacking.found, lacking.cure
    return True, "none to see" if free is None else f"{free >> 20} MiB free in {FOLDER}", ""


def kernel_cache() -> tuple[bool, str, str]:
    """Whether compiled kernels are kept between runs, where or why not, and the cure."""
    from astra_mpi.kernels import cpu

    state = cpu.cache_state()
    if state.found_in and not state.n_compiled:
        return True, f"all found in {state.found_in}", ""
    if state.trouble:
        return False, f"not kept: {state.trouble}", "set NUMBA_CACHE_DIR to a folder that can be written"
    given = os.environ.get("NUMBA_CACHE_DIR", "")
    if given and not state.folder.startswith(os.path.abspath(given)):
        return False, f"kept in {state.folder}", f"NUMBA_CACHE_DIR={given} cannot be written; give another folder"
    return True, f"kept in {state.folder}", ""


def threads_in_force() -> int:
    """Threads that kernels, BLAS or Numba may use in this process, whichever are most."""
    import numba
    from threadpoolctl import threadpool_info

    from astra_mpi.kernels.cpu import _team

    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return max([_team.size(), numba.get_num_threads(), *pools])


def cpu_quota(process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores that this process's control group may use, or None: no limit, or none that can be read."""
    try:
        groups = [line.split(":", 2) for line in process.read_text().splitlines()]
        for _, controllers, path in groups:
            folder = path.lstrip("/")
            if "cpu" in controllers.split(","):  # version 1
                quota, period = ((root / "cpu" / folder / f"cpu.cfs_{x}_us").read_text() for x in ("quota", "period"))
                return float(quota) / float(period) if float(quota) > 0 else None
            if not controllers:
                quota, period = (root / folder / "cpu.max").read_text().split()
                return None if quota == "max" else float(quota) / float(period)
    except (OSError, ValueError):
        pass
    return None


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return f"{os.path.getsize(path)} bytes, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as exc:
        return f"cannot be read ({exc.strerror})"
