"""A few rows times the rows of a float32 matrix: scores of keys, and logits of a tied head.

The matrix is read as it lies in memory, row after row, which is faster than several rows at a time.
"""

from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import FASTMATH, f32
from astra_mpi.kernels.cpu._memory import floats
from astra_mpi.kernels.cpu.token._vectors import dots_tile

_ONE, _ONE_BY_2, _ONE_BY_4 = (dots_tile(n, 1) for n in (1, 2, 4))
_TWO, _THREE, _FOUR = (dots_tile(1, n) for n in (2, 3, 4))


@inner(fastmath=FASTMATH)
def dots(x, ldx, n_rows, w, ldw, m, d, out, ldo):
    """out (n_rows, m) = x (n_rows, d) @ w (m, d) transposed; strides in bytes."""
    vectors = d // 16
    for j in range(m):
        row, t, column = w + j * ldw, 0, out + 4 * j
        if not vectors:
            for t in range(n_rows):
                floats(column + t * ldo, 1)[0] = f32(0)
            continue
        while n_rows - t >= 4:
            _FOUR(x + t * ldx, ldx, row, column + t * ldo, ldo, vectors)
            t += 4
        if n_rows - t == 3:
            _THREE(x + t * ldx, ldx, row, column + t * ldo, ldo, vectors)
        elif n_rows - t == 2:
            _TWO(x + t * ldx, ldx, row, column + t * ldo, ldo, vectors)
        elif n_rows - t == 1:
            if vectors % 4 == 0:
                _ONE_BY_4(x + t * ldx, ldx, row, column + t * ldo, ldo, vectors)
            elif vectors % 2 == 0:
                _ONE_BY_2(x + t * ldx, ldx, row, column + t * ldo, ldo, vectors)
            else:
                _ONE(x + t * ldx, ldx, row, column + t * ldo, ldo, vectors)
    if d % 16:
        for j in range(m):
            row = floats(w + j * ldw, d)
            for t in range(n_rows):
                factors, total = floats(x + t * ldx, d), f32(0)
                for e in range(16 * vectors, d):
                    total += factors[e] * row[e]
                floats(out + t * ldo, m)[j] += total
