"""What MPI needs of /dev/shm, asked before MPI starts: there is no message once a rank has died of it.

Measured with the wheels of MPICH 4.3 and 5.0 and of Open MPI 5.0 (docs/reference/environments.md). MPICH writes into
memory that the file system may not have, and is killed by SIGBUS. UCX, which MPICH uses beside its own memory, takes
its part where it finds 16 MiB, rank by rank, and crashes where that is not so for all. Open MPI goes on without, by
TCP.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from astra_mpi.errors import InputError
from astra_mpi.ranks.launch import local_rank, local_size

FOLDER = "/dev/shm"
KIB, MIB = 1 << 10, 1 << 20
#: of MPICH: per rank, and beside the cells of its queues
_CELLS, _CELL_BYTES, _OWN_BYTES = 64, 8 * KIB, 8 * KIB
#: cells with which ranks still get on
_FEWEST_CELLS = 8
#: of UCX: what it must find, with some room for other programs, and what it takes per rank
_UCX_LEAST, _UCX_SAFE, _UCX_BYTES = 15 * MIB, 16 * MIB, 4232 * KIB
#: of Open MPI: one rank's part is 16 MiB, of which it leaves a twentieth free
_OPENMPI_BYTES = 16 * MIB * 105 // 100


class Shortage(NamedTuple):
    """Too little shared memory. deadly: ranks are certain to die of it."""

    deadly: bool
    found: str
    cure: str


@cache
def room_bytes(folder: str = FOLDER) -> int | None:
    """What is free there; 0 where it cannot be written, None where there is no such folder. As first asked."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return None
    return 0 if facts.f_flag & os.ST_RDONLY else facts.f_bavail * facts.f_frsize


def shortage(library: str, n_ranks: int, free: int | None, settings: Mapping[str, str] = os.environ) -> Shortage | None:
    """What is wrong for `n_ranks` ranks of one machine under this MPI (its library's version text), or None.

    free: bytes of FOLDER. Nothing is known of other MPIs, nor of other systems than Linux.
    """
    if sys.platform != "linux":
        return None
    if library.startswith("MPICH"):
        return _mpich(library, n_ranks, free, settings)
    return _openmpi(n_ranks, free, settings) if library.startswith("Open MPI") else None


def start_mpi() -> None:
    """Import and start MPI, once it is known that it can live here: InputError otherwise, on all ranks of a machine."""
    import mpi4py

    if "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.initialize = False
        if mpi4py.rc.finalize is None and "MPI4PY_RC_FINALIZE" not in os.environ:
            mpi4py.rc.finalize = True
    from mpi4py import MPI

    if MPI.Is_initialized():
        return
    _check(MPI.Get_library_version())
    if _of_mpi4py("threads").lower() in ("0", "n", "no", "false", "off"):
        MPI.Init()
    else:
        MPI.Init_thread(getattr(MPI, f"THREAD_{_of_mpi4py('thread_level').upper()}"))


def _of_mpi4py(name: str) -> str:
    """What a site or user has told mpi4py, which reads it only where it starts MPI by itself."""
    import mpi4py

    return os.environ.get(f"MPI4PY_RC_{name.upper()}", str(getattr(mpi4py.rc, name)))


def _check(library: str) -> None:
    """InputError where ranks would die; where they may, a warning of the machine's first."""
    lacking = shortage(library, local_size(), room_bytes())
    if lacking is None:
        return
    if not lacking.deadly:
        if local_rank() == 0:
            print(f"astra-mpi: warning: {lacking.found}; {lacking.cure}", file=sys.stderr, flush=True)
        return
    if local_rank() != 0:
        time.sleep(1.0)  # a launcher may end all ranks once one has ended
    raise InputError(f"{lacking.found}; {lacking.cure}")


def _mpich(library: str, n_ranks: int, free: int | None, settings: Mapping[str, str]) -> Shortage | None:
    n_cells, cell_bytes = (
        _number(settings, f"MPIR_CVAR_CH4_SHM_POSIX_IQUEUE_{name}", default)
        for name, default in (("NUM_CELLS", _CELLS), ("CELL_SIZE", _CELL_BYTES))
    )
    cells_bytes = 2 * n_ranks * cell_bytes  # of one cell of every queue
    own_bytes = (n_ranks + 1) * _OWN_BYTES + n_cells * cells_bytes
    ucx = "ucx" in _device(library) and _takes_posix(settings)
    safe_bytes = own_bytes + (_UCX_SAFE + n_ranks * _UCX_BYTES if ucx else 0)
    larger = _larger(safe_bytes)
    if free is None:
        return Shortage(False, f"there is no {FOLDER}, which MPICH needs", f"mount a tmpfs there: {larger}")
    if free < own_bytes:
        fewer = (free - (n_ranks + 1) * _OWN_BYTES) // cells_bytes
        smaller = f", or set MPIR_CVAR_CH4_SHM_POSIX_IQUEUE_NUM_CELLS={fewer}" if fewer >= _FEWEST_CELLS else ""
        found = f"{_has(free)}, where MPICH needs {_mib(own_bytes)} {_for(n_ranks)} and is killed by SIGBUS with less"
        return Shortage(_version(library) >= (4, 3), found, f"enlarge it: {larger}{smaller}")
    if ucx and _UCX_LEAST <= free < safe_bytes:
        found = f"{_has(free)}, less than {_mib(safe_bytes)}: UCX may find room {_for(n_ranks)} in part only and crash"
        return Shortage(False, found, f"set UCX_TLS=^posix, or enlarge it: {larger}")
    return None


def _openmpi(n_ranks: int, free: int | None, settings: Mapping[str, str]) -> Shortage | None:
    chosen = settings.get("OMPI_MCA_btl", "sm")
    if n_ranks == 1 or free is None or free >= _OPENMPI_BYTES or "OMPI_MCA_btl_sm_backing_directory" in settings:
        return None
    if chosen.startswith("^") or not {"sm", "vader"} & set(chosen.split(",")):
        return None  # told not to use it
    found = f"{_has(free)}; with less than {_mib(_OPENMPI_BYTES)} Open MPI's ranks of one machine exchange by TCP"
    return Shortage(
        False,
        found,
        f"enlarge it: {_larger(n_ranks * _OPENMPI_BYTES)}, or set OMPI_MCA_btl_sm_backing_directory to a folder"
        " with more room",
    )


def _larger(needed: int) -> str:
    size = f"{max(64, 1 << (-(-needed // MIB) - 1).bit_length())}m"
    return f"mount -o remount,size={size} {FOLDER}, in a container --shm-size={size}"


def _has(free: int) -> str:
    return f"{FOLDER} of {platform.node()} has {_mib(free)} free" if free else f"{FOLDER} cannot be written"


def _for(n_ranks: int) -> str:
    return f"for {n_ranks} ranks" if n_ranks > 1 else "for one rank"


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.1f} MiB" if n_bytes >= MIB else f"{n_bytes // KIB} KiB"


def _number(settings: Mapping[str, str], name: str, default: int) -> int:
    text = settings.get(name, "")
    return int(text) if text.isdecimal() else default


def _device(library: str) -> str:
    found = re.search(r"MPICH Device:\s*(.*)", library)
    return found[1] if found else ""


def _version(library: str) -> tuple[int, ...]:
    found = re.search(r"MPICH Version:\s*(\d+)\.(\d+)", library)
    return tuple(map(int, found.groups())) if found else (0, 0)


def _takes_posix(settings: Mapping[str, str]) -> bool:
    """Whether UCX_TLS lets UCX use POSIX shared memory."""
    text = settings.get("UCX_TLS", "all")
    named = bool({"posix", "shm", "sm", "mm", "all"} & set(text.removeprefix("^").split(",")))
    return named != text.startswith("^")
