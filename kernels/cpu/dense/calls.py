"""What Python calls: a linear layer in float32, shared by the threads of the process's team."""

from typing import Any

import numpy as np

from astra_mpi.kernels.aligned import address
from astra_mpi.kernels.cpu import _team
from astra_mpi.kernels.cpu._features import features
from astra_mpi.kernels.cpu._matmul import matmul
from astra_mpi.kernels.cpu._rows import ACTIVATIONS, activate
from astra_mpi.kernels.cpu.dense.room import room
from astra_mpi.kernels.cpu.dense.strip import NARROW, WIDE
from astra_mpi.kernels.cpu.dense.sweep import TERMS, sweep
from astra_mpi.kernels.cpu.dense.tile import HAS_TILES

Array = np.ndarray

#: whether columns that are a whole number of pages apart push each other out of the second-level cache, so that tiles
#: which read them where they lie take twice as long as BLAS; measured on processors with AMX
_CROWDED = "amx-tile" in features()
_PAGE = 4096
#: rows of products that tiles compute faster than BLAS, which copies the weights first; and with more terms than TERMS
FEWEST, MOST, _MOST_DEEP = 8, 128 if _CROWDED else 512, 64
#: multiply-adds, some 20 us, for which waking other threads takes too long
_LEAST_WORK = 1 << 20


def dense(
    x: Array, weight: Array, out: Array, bias: Array | None = None, activation: str = "", add: bool = False
) -> Array:
    """out (m, n) = act(x (m, k) @ weight (k, n) + bias), added to what is there if `add`; see reference.dense."""
    m, k, n = len(x), *weight.shape
    if not by_tiles(x, weight, out):
        return _by_blas(x, weight, out, bias, activation, add)
    if bias is None and activation:
        bias = np.zeros(n, np.float32)  # held here until all threads have read it
    constant = address(bias)
    kind = ACTIVATIONS[activation] if activation else -1
    given = address(x), x.strides[0], m, k, address(weight), weight.strides[0]
    n_held = m if add or n % WIDE else 0

    def share(index: int, count: int) -> None:
        units = -(-n // WIDE)
        first, last = units * index // count * WIDE, min(n, units * (index + 1) // count * WIDE)
        rest, sums = room("last columns", k if last % NARROW else 0, NARROW), room("strip sums", n_held, WIDE)
        sweep(*given, first, last, constant, kind, add, address(out), out.strides[0], rest, sums)

    if _team.size() == 1 or m * k * n < _LEAST_WORK:
        share(0, 1)
    else:
        _team.run(share)
    return out


def by_tiles(x: Array, weight: Array, out: Array) -> bool:
    """Whether tiles compute this product faster than BLAS."""
    return len(weight) > 0 and FEWEST <= len(x) <= _most(weight) and _by_rows(x, weight, out)


def _most(weight: Array) -> int:
    """Rows up to which tiles multiply by it."""
    if not HAS_TILES or (_CROWDED and weight.strides[0] % _PAGE == 0):
        return 0
    return MOST if len(weight) <= TERMS else _MOST_DEEP


def _by_blas(x: Array, weight: Array, out: Array, bias: Array | None, activation: str, add: bool) -> Array:
    made = matmul(x, weight, None if add else out)
    if activation:
        activate(made, bias, activation)
    elif bias is not None:
        made += bias
    if add:
        out += made
    return out


def _by_rows(*arrays: Array) -> bool:
    """Whether they are float32 with rows of contiguous numbers."""
    return all(a.dtype == np.float32 and a.strides[1] == 4 for a in arrays)


def warm_up_dense() -> None:
    """Compile it, or load it from the cache on disk."""
    x: Any = np.ones((FEWEST, 1), np.float32)
    dense(x, x[:1], x.copy())
