"""Linear layers strip by strip: what is left to do to a strip's sums is done while they are in the cache."""

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._memory import floats
from astra_mpi.kernels.cpu._rows import activate_row
from astra_mpi.kernels.cpu.dense.strip import NARROW, WIDE, narrow_strip, wide_strip

#: terms of a strip that are added up at a time, so that it stays in the cache for all rows
TERMS = 1024


@compiled()
def sweep(x, ldx, m, k, weight, ldw, first, last, bias, kind, add, out, ldo, rest, sums):
    """Columns first .. last of out (m, n) = act(x (m, k) @ weight (k, n) + bias), added to what is there if `add`.

    x, weight, bias, out: addresses; ldx, ldw, ldo: bytes between rows. bias 0: none. kind: of ACTIVATIONS, -1 none.
    rest (k, NARROW) is room for the columns behind the last strip, sums (m, WIDE) for what is to be added or activated.
    first is a multiple of WIDE.
    """
    held = sums.ctypes.data
    column = first
    while column < last:
        width = WIDE if last - column >= WIDE else min(NARROW, last - column)
        b, ldb = weight + 4 * column, ldw
        if width < NARROW:
            b, ldb = rest.ctypes.data, 4 * NARROW
            for i in range(k):
                row, stored = rest[i], floats(weight + i * ldw + 4 * column, width)
                for j in range(NARROW):
                    row[j] = stored[j] if j < width else 0
        to, ldc = out + 4 * column, ldo
        if add or width < NARROW:
            to, ldc = held, 4 * WIDE
        _strip(x, ldx, m, b, ldb, to, ldc, k, width)
        _finish(to, ldc, m, width, bias + 4 * column if bias else 0, kind, add, out + 4 * column, ldo)
        column += width


@inner()
def _strip(x, ldx, m, b, ldb, to, ldc, k, width):
    """Sums (m, width) at `to`."""
    for term in range(0, k, TERMS):
        n_terms, begin = min(TERMS, k - term), 1 if term == 0 else 0
        if width == WIDE:
            wide_strip(x + 4 * term, ldx, m, b + term * ldb, ldb, to, ldc, n_terms, begin, 8 * WIDE)
        else:
            narrow_strip(x + 4 * term, ldx, m, b + term * ldb, ldb, to, ldc, n_terms, begin)


@compiled(fastmath={"contract", "nsz"}, error_model="numpy")
def _finish(sums, lds, m, width, bias, kind, add, out, ldo):
    """What the layer makes of sums (m, width), to out (m, width)."""
    constant = floats(bias, width)
    for i in range(m):
        row, target = floats(sums + i * lds, width), floats(out + i * ldo, width)
        if bias and kind < 0:
            for j in range(width):
                row[j] += constant[j]
        elif bias:
            activate_row(row, constant, kind)
        if add:
            for j in range(width):
                target[j] += row[j]
        elif sums != out:
            for j in range(width):
                target[j] = row[j]
