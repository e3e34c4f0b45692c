"""What becomes of sums while they are in the cache: scale, bias, activation, gate, and where they go.

On addresses, from row to row: counting references to arrays would take as long as the numbers of a row.
"""

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._memory import floats
from astra_mpi.kernels.cpu._rows import activate_row
from astra_mpi.kernels.cpu.products.lines import LINE, add_line, affine_line
from astra_mpi.kernels.cpu.products.parts import ADD, BFLOAT16, SET
from astra_mpi.kernels.cpu.products.rows import round_part, rows_of


@compiled()
def finish(tiles, layer, room, first, last, j, c, n, out, stride, mode):
    """Rows first .. last of the room's sums, n from column c on -> outputs of the same rows; see `layer.columns`.

    j: the output that the first column of the sums is of.
    """
    sums, gates, step = room.sums.ctypes.data + 4 * c, room.gate_sums.ctypes.data + 4 * c, room.sums.strides[0]
    own, gate_line, zeros = room.line.ctypes.data, room.gate_line.ctypes.data, room.zeros.ctypes.data
    rows, column = rows_of(tiles, out, stride), j + c
    for i in range(first, last):
        at = out + i * stride + 4 * column
        line = at if mode == SET else own
        _affine(sums + i * step, layer.scale + 4 * column, layer.bias + 4 * column, n, line)
        if layer.gate != 0:
            _affine(gates + i * step, layer.gate_scale + 4 * column, layer.gate_bias + 4 * column, n, gate_line)
            activate_row(floats(gate_line, n), floats(zeros, n), layer.activation)
            _multiply(floats(line, n), floats(gate_line, n))
        elif layer.activation >= 0:
            activate_row(floats(line, n), floats(zeros, n), layer.activation)
        if mode == ADD:
            _add(at, line, n)
        elif mode == BFLOAT16:
            round_part(rows, i, column, floats(line, n))


@inner()
def _affine(sums, scale, bias, n, out):
    """out = sums * scale + bias, n numbers of each."""
    whole = n // LINE * LINE
    for e in range(0, 4 * whole, 4 * LINE):
        affine_line(out + e, sums + e, scale + e, bias + e)
    if whole < n:
        line, row, factor, more = floats(out, n), floats(sums, n), floats(scale, n), floats(bias, n)
        for e in range(whole, n):
            line[e] = row[e] * factor[e] + more[e]


@inner()
def _add(out, line, n):
    """out += line, n numbers."""
    whole = n // LINE * LINE
    for e in range(0, 4 * whole, 4 * LINE):
        add_line(out + e, line + e)
    if whole < n:
        row, numbers = floats(out, n), floats(line, n)
        for e in range(whole, n):
            row[e] += numbers[e]


@inner()
def _multiply(line, gate):
    for e in range(line.size):
        line[e] *= gate[e]
