"""New tokens through all blocks in one compiled call, from tables that say where everything lies (`tables`).

The arrays of a table must outlive it. `keep` stores keys and values of a prompt as `advance` reads them. Compiled at
the first call, not with the other kernels.
"""

from typing import Any

import numpy as np

from astra_mpi.kernels.cpu.token import tables
from astra_mpi.kernels.cpu.token._attention import keep
from astra_mpi.kernels.cpu.token._products import HAS_BFLOAT16, HAS_BLOCKS, HAS_INT8
from astra_mpi.kernels.cpu.token._stages import advance

__all__ = ["HAS_BFLOAT16", "HAS_BLOCKS", "HAS_INT8", "advance", "keep", "tables", "warm_up"]


def warm_up() -> None:
    """Compile `advance` and `keep`, or load them from the cache on disk: calls with nothing to compute."""
    none = np.zeros((1, 1), np.int64)
    line = none[0]
    shapes: list[Any] = [line, np.zeros(1, np.float32), none, line, line, none, none, none[:0], line]
    advance(0, 0, *shapes, 0, 0, 1)
    keep(line, 0, 0, 0, 0, 1, 1, 0)
