"""Products by BLAS that the threads of the process's team share. BLAS itself is given one thread: its own ones look for
work for a while after each product, on cores that the team needs by then."""

import numpy as np

from astra_mpi.kernels.cpu import _team

Array = np.ndarray

#: multiply-adds for which waking other threads takes too long
_LEAST_WORK = 1 << 21


def matmul(x: Array, weight: Array, out: Array | None = None) -> Array:
    """out (m, n) = x (m, k) @ weight (k, n); a new array if there is no `out`. Threads share the rows, or the columns
    where there are more of them."""
    (m, k), n = x.shape, weight.shape[1]
    if _team.size() == 1 or m * k * n < _LEAST_WORK:
        return np.matmul(x, weight, out=out)
    made = np.empty((m, n), np.result_type(x, weight)) if out is None else out

    def share(index: int, count: int) -> None:
        part = slice(max(m, n) * index // count, max(m, n) * (index + 1) // count)
        if m >= n:
            np.matmul(x[part], weight, out=made[part])
        else:
            np.matmul(x, weight[:, part], out=made[:, part])

    _team.run(share)
    return made
