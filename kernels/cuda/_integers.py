"""Products that are the same on every processor (integers.cu)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from astra_mpi.device.xp import beside
from astra_mpi.kernels.cuda._launch import ceil_div, launch
from astra_mpi.kernels.cuda_source import options
from astra_mpi.kernels.integers import GROUP, Integers, Moved

Array = Any
_TILE = 64


def integer_product(parts: Sequence[Array], weights: Integers, out: Array, moved: Moved | None = None) -> Array:
    """See kernels.integers; weights are on the host, and are uploaded once."""
    (k, m), n = weights.shape, len(out)
    if not (n and m):
        return out
    x = cupy.ascontiguousarray(parts[0]) if len(parts) == 1 else cupy.concatenate(parts, axis=1)
    high, low, scale = (beside(x, array) for array in weights)
    groups = ceil_div(k, GROUP)
    q, steps = cupy.empty((n, k), np.int16), cupy.empty((n, groups), np.float32)
    if k:
        launch("integers", "quantise", (n, groups), GROUP, (x, q, steps, np.int32(k)), options())
    start = (None, np.float32(0), None)
    if moved is not None:
        start = cupy.ascontiguousarray(moved.state), np.float32(moved.keep), beside(x, moved.bias)
    sizes = (np.int32(size) for size in (n, k, m))
    grid = (ceil_div(n, _TILE), ceil_div(m, _TILE))
    launch("integers", "integer_product", grid, 256, (q, steps, high, low, scale, *start, out, *sizes), options())
    return out
