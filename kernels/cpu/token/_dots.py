"""A few rows times the rows of a float32 matrix: scores of keys, and logits of a tied head.

The matrix is read as it lies in memory, row after row, which is faster than several rows at a time. A row's result does
not depend on how many others there are: drafts are checked by the numbers that a token alone would get.
"""

from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import FASTMATH, f32
from astra_mpi.kernels.cpu._memory import floats
from astra_mpi.kernels.cpu.token._vectors import dots_tile


def _few(n_parts):
    """`few` of rows whose vectors are a multiple of n_parts, the sums under way."""
    one, two, three, four = (dots_tile(n_parts, n) for n in (1, 2, 3, 4))

    @inner()
    def few(x, ldx, n_rows, row, column, ldo, vectors):
        """column (n_rows, 1) = x (n_rows, d) @ row (d,)"""
        t = 0
        while n_rows - t >= 4:
            four(x + t * ldx, ldx, row, column + t * ldo, ldo, vectors)
            t += 4
        if n_rows - t == 3:
            three(x + t * ldx, ldx, row, column + t * ldo, ldo, vectors)
        elif n_rows - t == 2:
            two(x + t * ldx, ldx, row, column + t * ldo, ldo, vectors)
        elif n_rows - t == 1:
            one(x + t * ldx, ldx, row, column + t * ldo, ldo, vectors)

    return few


_by_1, _by_2, _by_4 = _few(1), _few(2), _few(4)


@inner(fastmath=FASTMATH)
def dots(x, ldx, n_rows, w, ldw, m, d, out, ldo):
    """out (n_rows, m) = x (n_rows, d) @ w (m, d) transposed; strides in bytes."""
    vectors = d // 16
    for j in range(m):
        row, column = w + j * ldw, out + 4 * j
        if not vectors:
            for t in range(n_rows):
                floats(column + t * ldo, 1)[0] = f32(0)
            continue
        if vectors % 4 == 0:
            _by_4(x, ldx, n_rows, row, column, ldo, vectors)
        elif vectors % 2 == 0:
            _by_2(x, ldx, n_rows, row, column, ldo, vectors)
        else:
            _by_1(x, ldx, n_rows, row, column, ldo, vectors)
    if d % 16:
        for j in range(m):
            row = floats(w + j * ldw, d)
            for t in range(n_rows):
                factors, total = floats(x + t * ldx, d), f32(0)
                for e in range(16 * vectors, d):
                    total += factors[e] * row[e]
                floats(out + t * ldo, m)[j] += total
