"""Whether MPI takes GPU memory: tried, because what a library says of itself is unreliable."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

from astra_mpi.ranks.launch import LAUNCHER_PREFIXES

#: one process sends device memory to itself; an MPI that is not GPU-aware dies of it, or delivers something else
_TRIAL = """
import cupy
from mpi4py import MPI
sent, received = cupy.arange(1 << 16, dtype=cupy.float32), cupy.zeros(1 << 16, dtype=cupy.float32)
cupy.cuda.get_current_stream().synchronize()
MPI.COMM_SELF.Sendrecv(sent, dest=0, recvbuf=received, source=0)
raise SystemExit(0 if bool((sent == received).all()) else "MPI delivered something else")
"""


def gpu_answer(asked: bool) -> tuple[bool, str, str]:
    """-> (fine, what was found, cure)."""
    if not asked:
        return True, "no GPU backend asked", ""
    if find_spec("cupy") is None:
        return False, "cupy is not installed", "pip install 'astra-mpi[cuda12]' or [cuda13], as the driver needs"
    died = try_alone(_TRIAL)
    cure = "keep messages host-staged, or take an MPI built for CUDA (MPICH: MPIR_CVAR_ENABLE_GPU=1; Open MPI with UCX)"
    return (False, f"MPI does not take GPU memory: {died}", cure) if died else (True, "MPI takes GPU memory", "")


def try_alone(code: str, limit_s: float = 60) -> str:
    """Run Python `code` in a process of its own, outside these ranks; "" if it ends well, else what it died of."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_PREFIXES)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=outside, capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {limit_s:g} s"
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
