"""CUDA C sources compiled for the CPU by g++ (emulator.h), with the call signature of `cupy.RawKernel`."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.lib.array_utils import byte_bounds

HERE = Path(__file__).resolve().parent
CACHE = Path(tempfile.gettempdir()) / f"astra-mpi-emulated-{os.getuid()}"
COMPILER = shutil.which("g++")
#: between barriers, threads run: 0 ascending, 1 descending, from 2 on at random
ORDERS = (0, 1, 2)


class EmulationError(RuntimeError):
    """What a GPU would have done wrong."""


class Module:
    """The kernels of a source; options as NVRTC takes them.

    order: of the threads, one of ORDERS; races: whether to look for races in shared memory, which takes most of the
    time.
    """

    def __init__(self, code: str, options: tuple[str, ...] = (), order: int = 0, races: bool = True):
        self.order, self.races = order, races
        self.shared_limits: dict[str, int] = {}
        names = dict.fromkeys(re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(", code))
        exported = "".join(
            f'extern "C" const char *launch_{name}(const unsigned *g, const unsigned *b, size_t s, int o, int r, int n,'
            f" const size_t *z, void **a) {{ return emulated::launch(&{name}, g, b, s, o, r, n, z, a); }}\n"
            for name in names
        )
        self.library = ctypes.CDLL(str(compiled(f'#include "emulator.h"\n{code}\n{exported}', options)))
        self.library.guarded.restype = ctypes.c_void_p
        self.library.guarded.argtypes = [ctypes.c_size_t]
        self.library.release.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def get_function(self, name: str) -> Kernel:
        return Kernel(self, name)


class Kernel:
    """kernel(grid, block, args, shared_mem=0); args are NumPy arrays and NumPy scalars of the exact type."""

    def __init__(self, module: Module, name: str):
        self.module, self.name = module, name
        self.function = getattr(module.library, f"launch_{name}")
        self.function.restype = ctypes.c_char_p

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Of the function in the module, whoever holds it."""
        return self.module.shared_limits.get(self.name, 48 << 10)

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        self.module.shared_limits[self.name] = size

    def __call__(self, grid, block, args, shared_mem=0):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise EmulationError(f"{self.name}: {shared_mem} bytes of shared memory have not been asked for")
        arrays = Guarded(self.module.library, [arg for arg in args if isinstance(arg, np.ndarray)])
        values = [arrays.pointer(arg) if isinstance(arg, np.ndarray) else np.array([_exact(arg)]) for arg in args]
        n = len(values)
        pointers = (ctypes.c_void_p * n)(*(value.ctypes.data for value in values))
        sizes = (ctypes.c_size_t * n)(*(value.itemsize for value in values))
        dims = [(ctypes.c_uint * 3)(*(*size, 1, 1)[:3]) for size in (grid, block)]
        error = self.function(
            *dims, ctypes.c_size_t(shared_mem), self.module.order, int(self.module.races), n, sizes, pointers
        )
        touched = arrays.put_back()
        if error or touched:
            raise EmulationError(f"{self.name}: {error.decode() if error else 'something was written beside an array'}")


def _exact(arg):
    if isinstance(arg, np.generic):
        return arg
    if isinstance(arg, bool | int):  # as CuPy does: 8 bytes
        return np.int64(arg)
    if isinstance(arg, float):
        return np.float64(arg)
    raise TypeError(f"a kernel takes no {type(arg)}")


class Guarded:
    """Copies of arrays with forbidden pages around; views of one array stay views of one copy."""

    def __init__(self, library, arrays):
        self.library, self.copies = library, {}
        for array in arrays:
            root = _root(array)
            if id(root) not in self.copies and root.nbytes:
                low, high = byte_bounds(root)
                copy = library.guarded(high - low)
                ctypes.memmove(copy, low, high - low)
                self.copies[id(root)] = root, low, high - low, copy

    def pointer(self, array):
        root = _root(array)
        if not root.nbytes:
            return np.zeros(1, np.uintp)
        _, low, _, copy = self.copies[id(root)]
        return np.array([copy + array.ctypes.data - low], np.uintp)

    def put_back(self) -> bool:
        touched = False
        for root, low, size, copy in self.copies.values():
            if root.flags.writeable:
                ctypes.memmove(low, copy, size)
            touched |= bool(self.library.release(copy, size))
        return touched


def _root(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def compiled(text: str, options: tuple[str, ...]) -> Path:
    """The shared library of this source, made once on this machine; of many processes one compiles."""
    defines = [option for option in options if option.startswith("-D")]
    key = hashlib.sha256(repr((text, (HERE / "emulator.h").read_text(), defines)).encode()).hexdigest()[:20]
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    library = CACHE / f"{key}.so"
    with open(CACHE / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            source = CACHE / f"{key}.cpp"
            source.write_text(text)
            made = source.with_suffix(".made")
            flags = [
                "-std=c++17",
                "-O2",
                "-shared",
                "-fPIC",
                "-w",
                "-fno-strict-aliasing",
                "-ffp-contract=off",
                f"-I{HERE}",
            ]
            done = subprocess.run(
                [str(COMPILER), *flags, *defines, str(source), "-o", str(made)], capture_output=True, text=True
            )
            if done.returncode:
                raise EmulationError(done.stderr)
            made.rename(library)
    return library
