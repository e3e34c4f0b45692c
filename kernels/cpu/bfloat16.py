"""The kernels of `cpu`, with products computed in bfloat16."""

from astra_mpi.kernels import cpu
from astra_mpi.kernels.cpu import *  # noqa: F403
from astra_mpi.kernels.cpu import _encode_narrow, _flash
from astra_mpi.kernels.cpu._encode_narrow import encode_grouped, encode_residual  # noqa: F401
from astra_mpi.kernels.cpu._flash import attend  # noqa: F401

compute = "bfloat16"


def warm_up() -> None:
    """Compile every kernel, or load it from Numba's cache on disk; see cpu.warm_up."""
    cpu.warm_up()
    _flash.warm_up()
    _encode_narrow.warm_up()
