"""What `bfloat16` and `int8` have in place of float32's kernels, or beside them."""

import numpy as np

from astra_mpi.kernels import cpu
from astra_mpi.kernels.cpu.flash import calls as _flash
from astra_mpi.kernels.cpu.flash.calls import attend, reads_rows
from astra_mpi.kernels.cpu.products.calls import layer, two_layers, warm_up_products
from astra_mpi.kernels.cpu.products.layout import columns_from
from astra_mpi.kernels.cpu.products.layout import empty as empty_weights
from astra_mpi.kernels.cpu.products.layout import pack as pack_weights
from astra_mpi.kernels.cpu.products.layout import unpack as unpack_weights

__all__ = [
    "attend",
    "columns_from",
    "empty_weights",
    "layer",
    "pack_weights",
    "reads_rows",
    "two_layers",
    "unpack_weights",
]


def warm_up(kind: str) -> None:
    """Compile every kernel of a job in this type, or load it from Numba's cache on disk; see cpu.warm_up."""
    cpu.warm_up()
    warm_up_products(kind)
    _flash.warm_up()
    cpu.table_sum(np.zeros((1, 1), np.uint8), np.zeros((1, 1, 1), np.uint16), None, None)
