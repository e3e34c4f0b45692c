"""Products whose rows do not depend on each other (ordered.cu)."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from astra_mpi.device.xp import beside
from astra_mpi.kernels.cuda._launch import ceil_div, launch
from astra_mpi.kernels.cuda_source import options

Array = Any
_TILE = 64


def ordered_product(x: Array, weight: Array, out: Array) -> Array:
    """out (n, m) = x (n, k) @ weight (k, m), float32; see reference.ordered_product."""
    n, (k, m) = len(x), weight.shape
    if n and m:
        given = cupy.ascontiguousarray(x), beside(x, weight), out, *(np.int32(size) for size in (n, k, m))
        launch("ordered", "ordered_product", (ceil_div(n, _TILE), ceil_div(m, _TILE)), 256, given, options())
    return out
