"""Kernels compiled before a job, into a folder that its processes read: for images and shared file systems."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from astra_mpi.errors import AstraError, InputError

_MODULE = "astra_mpi.kernels.cpu.ahead"


class Filled(NamedTuple):
    """What lies in a folder of kernels now."""

    folder: str
    processor: str  # in LLVM's words: on another kind kernels are compiled anew
    n_compiled: dict[str, int]  # per part: those that were not there yet
    took_s: dict[str, float]  # per part, with those that were there
    elapsed_s: float
    n_bytes: int


def fill(parts: Sequence[str], folder: str | None, n_processes: int) -> Filled:
    """Compile parts of the kernels (kernels/cpu/ahead.py) in several processes, into a folder or where this
    installation keeps kernels. InputError if the folder cannot be written, AstraError if a part fails."""
    environment = dict(os.environ)
    if folder is not None:
        environment["NUMBA_CACHE_DIR"] = _writable(folder)
    begin_s = time.monotonic()
    with ThreadPoolExecutor(n_processes) as pool:
        told = list(pool.map(lambda part: _compile(part, environment), parts))
    folders = {found for part in told for found in part["folders"]}
    return Filled(
        os.path.commonpath(folders),
        processor(),
        {part["part"]: part["n_compiled"] for part in told},
        {part["part"]: part["took_s"] for part in told},
        time.monotonic() - begin_s,
        sum(file.stat().st_size for found in folders for file in Path(found).glob("*.nb[ic]")),
    )


def processor() -> str:
    """What kernels are compiled for here."""
    import llvmlite.binding
    from numba import config

    name = config.CPU_NAME or llvmlite.binding.get_host_cpu_name()  # type: ignore[attr-defined]
    return f"{name} ({os.uname().machine})"


def _writable(folder: str) -> str:
    path = os.path.abspath(folder)
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as exc:
        raise InputError(f"{folder}: no folder can be made there ({exc.strerror}); give another one") from exc
    if not os.access(path, os.W_OK):
        raise InputError(f"{folder}: cannot be written; give another folder")
    return path


def _compile(part: str, environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", _MODULE, part], env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise AstraError(f"kernels of '{part}' cannot be compiled (exit code {done.returncode}): {last}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if told["trouble"]:
        raise InputError(f"compiled kernels cannot be kept: {told['trouble']}; give another --folder")
    return told
