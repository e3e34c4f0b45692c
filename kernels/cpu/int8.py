"""The kernels of `cpu`, with products computed in int8."""

from astra_mpi.kernels.cpu import *  # noqa: F403
from astra_mpi.kernels.cpu import warm_up as _warm_up
from astra_mpi.kernels.cpu._features import Path, path
from astra_mpi.kernels.cpu.products.calls import layer, two_layers, warm_up_products
from astra_mpi.kernels.cpu.products.layout import columns_from
from astra_mpi.kernels.cpu.products.layout import empty as empty_weights
from astra_mpi.kernels.cpu.products.layout import pack as pack_weights
from astra_mpi.kernels.cpu.products.layout import unpack as unpack_weights

__all__ = ["columns_from", "empty_weights", "layer", "pack_weights", "two_layers", "unpack_weights"]  # and those of cpu

compute = "int8"


def products_path() -> Path:
    """How products are computed here."""
    return path(compute)


def warm_up() -> None:
    """Compile every kernel, or load it from the cache on disk."""
    _warm_up()
    warm_up_products(compute)
