"""What this CPU multiplies with: which path each type of products takes here, and why.

A path is chosen once in a process, from the CPU's features, the system's permission for tiles, and a measurement of a
few milliseconds where features alone do not tell. ASTRA_PRODUCTS=widened (or another path) forces one, for tests and
for finding out what a path is worth.
"""

import ctypes
import os
import platform
import sys
from functools import cache
from typing import NamedTuple

import llvmlite.binding
from numba import config

#: type of products -> paths in order of preference; the last one runs everywhere
PATHS = {
    "float32": ("blas",),
    "bfloat16": ("amx", "avx512_bf16", "widened"),
    "int8": ("amx", "vnni", "widened"),
}
#: what the CPU must have for a path, in LLVM's words
_NEEDS = {
    ("bfloat16", "amx"): {"amx-tile", "amx-bf16", "avx512f"},
    ("int8", "amx"): {"amx-tile", "amx-int8", "avx512f"},
    ("bfloat16", "avx512_bf16"): {"avx512bf16", "avx512bw", "avx512vl"},
    ("int8", "vnni"): {"avx512vnni", "avx512bw", "avx512vl"},
}
#: the environment variable that forces a path
FORCE = "ASTRA_PRODUCTS"
#: how much faster than float32 a path must be to be taken, where that depends on the CPU
_LEAST_GAIN = 1.15

# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) on x86-64 Linux
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


class Path(NamedTuple):
    """How products of one type are computed in this process."""

    name: str  # one of PATHS
    why: str  # in words, "" where the first choice was taken without a question
    refused: str = ""  # why the CPU's tiles are not used, if so

    @property
    def told(self) -> str:
        """The name, and what was refused; the same on every run of a machine."""
        return f"{self.name} ({self.refused})" if self.refused else self.name


@cache
def features() -> frozenset[str]:
    """What the CPU has and NUMBA_CPU_FEATURES allows, in LLVM's words; none where LLVM does not know the CPU."""
    try:
        found = llvmlite.binding.get_host_cpu_features()
    except RuntimeError:
        return frozenset()
    there = frozenset(name for name, has in found.items() if has)
    allowed = config.CPU_FEATURES  # type: ignore[attr-defined]
    return there if allowed is None else there & {name[1:] for name in allowed.split(",") if name.startswith("+")}


@cache
def tiles_refused() -> str:
    """Ask the system once for the use of AMX tiles: "" if it is granted, else why not."""
    if "amx-tile" not in features():
        return "the CPU has no AMX"
    if not (sys.platform.startswith("linux") and platform.machine() == "x86_64"):
        return f"tiles are asked for on Linux only, and this is {sys.platform}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA):
        return f"the system refuses tiles ({os.strerror(ctypes.get_errno())}); it needs Linux 5.16 or newer"
    return ""


def has(compute: str, path: str) -> bool:
    """Whether this CPU, and its system, can take a path."""
    if path not in PATHS[compute] or (path == "amx" and tiles_refused()):
        return False
    return _NEEDS.get((compute, path), set()) <= features()


@cache
def path(compute: str) -> Path:
    """The path of products of type `compute`, one of PATHS; the same for the whole process."""
    forced = os.environ.get(FORCE, "") if compute != "float32" else ""
    if forced and has(compute, forced):
        return Path(forced, f"{FORCE}={forced}")
    notes = [f"{FORCE}={forced} is not available for {compute} here"] if forced else []
    refused = tiles_refused() if compute != "float32" and "amx-tile" in features() else ""
    notes += [refused] if refused else []
    name = next(name for name in PATHS[compute] if has(compute, name))
    if (compute, name) == ("bfloat16", "avx512_bf16"):
        from astra_mpi.kernels.cpu.products.speeds import gain  # it asks for paths itself

        measured = gain(compute, name)  # half of float32's speed on some CPUs, twice on others
        if measured < _LEAST_GAIN:  # or other processes were in the way
            measured = max(measured, gain(compute, name, laps=21))
        notes.append(f"vdpbf16ps has {measured:.2f} times the speed of float32")
        if measured < _LEAST_GAIN:
            name = "widened"
    return Path(name, "; ".join(notes), refused)
