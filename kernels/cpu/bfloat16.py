"""The kernels of `cpu`, with products computed in bfloat16."""

from astra_mpi.kernels.cpu import *  # noqa: F403
from astra_mpi.kernels.cpu import _narrow
from astra_mpi.kernels.cpu._features import Path, path
from astra_mpi.kernels.cpu._narrow import *  # noqa: F403

compute = "bfloat16"


def products_path() -> Path:
    """How products are computed here."""
    return path(compute)


def warm_up() -> None:
    """Compile every kernel, or load it from Numba's cache on disk; see cpu.warm_up."""
    _narrow.warm_up(compute)
