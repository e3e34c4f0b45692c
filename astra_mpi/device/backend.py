"""Where arrays live and which kernels work on them. Chosen once, at load."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.device.gpus import choose_gpu
from astra_mpi.device.memory import OWN, Memory
from astra_mpi.device.staging import TRANSPORTS, Staging, make_staging
from astra_mpi.device.weights import Weights
from astra_mpi.device.xp import to_host
from astra_mpi.errors import InputError, collective, raise_together
from astra_mpi.ranks.watched import alone, waiting

if TYPE_CHECKING:
    from mpi4py import MPI

BACKENDS = ("numpy", "reference", "cuda")
#: how a CPU multiplies: sums are float32 (int8: exact), and so is what lies between products
COMPUTES = ("float32", "bfloat16", "int8")
#: the fastest of these whose effect is small, which `load` finds out (docs/explanation/compute.md)
AUTO_COMPUTE = "auto"
#: what computes in another type on the other backends, or why nothing does
_NOT_NUMPY = {
    "cuda": "is for backend numpy; on a GPU set precision, such as float16",
    "reference": "is for backend numpy; the reference computes in float32, so leave compute away",
}
#: how a GPU computes: float32; float32 whose matrix products round their factors to TF32; float16
PRECISIONS = ("float32", "tf32", "float16")


@dataclass(frozen=True)
class Backend:
    """An array module and its kernels."""

    name: str
    xp: Any
    kernels: ModuleType
    dtype: type = np.float32  # of activations and weights
    staging: Staging | None = None  # between device memory and MPI
    choices: dict[str, Any] = field(default_factory=dict)  # for the summary
    #: where the weights lie that products read
    memory: Memory = OWN

    @property
    def compute(self) -> str:
        """The type of products of a CPU (COMPUTES)."""
        return str(getattr(self.kernels, "compute", "float32"))

    def upload(self, weights: Weights) -> Weights:
        """Weights where the kernels work: a device's in its precision, whatever they are stored as."""
        return weights if self.xp is np else {name: self.put(np.asarray(array)) for name, array in weights.items()}

    def put(self, array: np.ndarray) -> Any:
        """A float array of the host's, where the kernels work."""
        return array if self.xp is np else self.xp.asarray(array.astype(self.dtype, copy=False))

    def fetch(self, array: Any) -> np.ndarray:
        """The array as the host's, float32 if the device's was less."""
        return array if self.xp is np else to_host(array).astype(np.float32, copy=False)


def get_backend(
    name: str, comm: MPI.Comm, transport: str = "host", precision: str = "float32", compute: str = "float32"
) -> Backend:
    """Collective. "numpy": Numba kernels; "reference": plain NumPy ones; "cuda": CuPy and CUDA kernels.

    transport, precision: of "cuda", see TRANSPORTS and PRECISIONS; compute: of "numpy", see COMPUTES. InputError on
    names that do not exist or do not go together, and where there is no GPU.
    """
    require(name in BACKENDS, f"backend '{name}' is not available; use one of {', '.join(BACKENDS)}")
    require(transport in TRANSPORTS, f"transport '{transport}' is unknown; use one of {', '.join(TRANSPORTS)}")
    require(precision in PRECISIONS, f"precision '{precision}' is unknown; use one of {', '.join(PRECISIONS)}")
    check_compute(name, compute)
    require(compute != AUTO_COMPUTE, "compute = 'auto' needs a model; use one of " + ", ".join(COMPUTES))
    if name == "cuda":
        return _cuda(comm, transport, precision)
    for key, value, default in (("transport", transport, "host"), ("precision", precision, "float32")):
        require(value == default, f"{key} = '{value}' is for backend cuda; this one is {name}")
    if name == "reference":
        from astra_mpi.kernels import reference

        return Backend(name, np, reference)
    return _numpy(comm, compute)


def check_compute(name: str, compute: str) -> None:
    """InputError unless this type of products, or AUTO_COMPUTE, exists and goes with the backend `name`."""
    known = (*COMPUTES, AUTO_COMPUTE)
    require(compute in known, f"compute '{compute}' is unknown; use one of {', '.join(known)}")
    require(compute == "float32" or name == "numpy", f"compute = '{compute}' {_NOT_NUMPY.get(name, '')}")


def _numpy(comm: MPI.Comm, compute: str) -> Backend:
    from astra_mpi.kernels import cpu

    kernels = cpu if compute == "float32" else import_module(f"{cpu.__name__}.{compute}")
    state = cpu.cache_state()
    n_before, begin_s = state.n_compiled, time.monotonic()
    compile_in_turn(comm, kernels.warm_up)
    if comm.Get_rank() == 0 and state.trouble and state.n_compiled > n_before:
        _say_anew(state.trouble, time.monotonic() - begin_s)
    told = {} if compute == "float32" else {"compute": compute, "products": kernels.products_path().told}
    return Backend("numpy", np, kernels, choices=told)


def compile_in_turn(comm: MPI.Comm, warm_up: Callable[[], None]) -> None:
    """Collective: rank 0 compiles into the on-disk cache first and the others then load from it: many ranks compiling
    the same kernels at once take twice as long.
    """
    from astra_mpi.kernels import cpu

    failure: Exception | None = None
    try:
        if comm.Get_rank() == 0 and cpu.cache_state().folder:
            with alone(comm, "compilation"):
                warm_up()
    except Exception as exc:
        failure = exc
    turn = comm.Ibarrier()
    with waiting(comm, "compilation on rank 0"):
        while not turn.Test():
            time.sleep(0.001)
    raise_together(comm, failure)
    with collective(comm), alone(comm, "compilation"):
        warm_up()


def _say_anew(trouble: str, took_s: float) -> None:
    print(
        f"astra-mpi: note: compiled kernels are not kept ({trouble}) and are made anew at each start, which took"
        f" {took_s:.0f} s; set NUMBA_CACHE_DIR to a folder that can be written",
        file=sys.stderr,
        flush=True,
    )


def _cuda(comm: MPI.Comm, transport: str, precision: str) -> Backend:
    with collective(comm):
        try:
            import cupy
        except ImportError as exc:
            raise InputError(
                f"backend cuda needs CuPy ({exc}); pip install 'astra-mpi[cuda12]' or [cuda13], as the driver needs"
            ) from exc
    gpu = choose_gpu(cupy, comm)
    with collective(comm):
        from astra_mpi.kernels import cuda

        linalg = cupy._core._routines_linalg
        product = linalg.COMPUTE_TYPE_TF32 if precision == "tf32" else linalg.COMPUTE_TYPE_DEFAULT
        cupy._core.set_compute_type(np.float32, product)
        dtype = np.float16 if precision == "float16" else np.float32
        cuda.warm_up(dtype)
        backend = Backend(
            "cuda",
            cupy,
            cuda,
            dtype,
            make_staging(cupy, transport),
            {"gpu": gpu, "transport": transport, "precision": precision},
        )
    return backend  # noqa: RET504, what `with` may swallow
