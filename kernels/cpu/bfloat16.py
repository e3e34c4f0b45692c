"""The kernels of `cpu`, with products computed in bfloat16."""

from astra_mpi.kernels.cpu import *  # noqa: F403

compute = "bfloat16"
