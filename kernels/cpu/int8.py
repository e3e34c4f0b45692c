"""The kernels of `cpu`, with products computed in int8."""

from astra_mpi.kernels.cpu import *  # noqa: F403

compute = "int8"
