"""The kernels of `cpu`, with products computed in int8; attention's in bfloat16."""

import numpy as np

from astra_mpi.kernels import cpu
from astra_mpi.kernels.cpu import *  # noqa: F403
from astra_mpi.kernels.cpu import _encode_narrow
from astra_mpi.kernels.cpu._encode_narrow import encode_grouped, encode_residual
from astra_mpi.kernels.cpu._features import Path, path
from astra_mpi.kernels.cpu.flash import calls as _flash
from astra_mpi.kernels.cpu.flash.calls import attend
from astra_mpi.kernels.cpu.products.calls import layer, two_layers, warm_up_products
from astra_mpi.kernels.cpu.products.layout import columns_from
from astra_mpi.kernels.cpu.products.layout import empty as empty_weights
from astra_mpi.kernels.cpu.products.layout import pack as pack_weights
from astra_mpi.kernels.cpu.products.layout import unpack as unpack_weights

__all__ = [  # and those of cpu
    "attend",
    "columns_from",
    "empty_weights",
    "encode_grouped",
    "encode_residual",
    "layer",
    "pack_weights",
    "two_layers",
    "unpack_weights",
]

compute = "int8"


def products_path() -> Path:
    """How products are computed here."""
    return path(compute)


def warm_up() -> None:
    """Compile every kernel, or load it from Numba's cache on disk; see cpu.warm_up."""
    cpu.warm_up()
    warm_up_products(compute)
    _flash.warm_up()
    _encode_narrow.warm_up()
    cpu.table_sum(np.zeros((1, 1), np.uint8), np.zeros((1, 1, 1), np.uint16), None, None)
