"""What becomes of sums while they are in the cache: scale, bias, activation, gate, and where they go."""

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._memory import floats
from astra_mpi.kernels.cpu._rows import activate_row
from astra_mpi.kernels.cpu.products.parts import ADD, BFLOAT16, SET
from astra_mpi.kernels.cpu.products.rows import round_part, rows_of


@compiled()
def finish(tiles, layer, room, first, last, j, n, out, stride, mode):
    """Rows first .. last of the room's sums -> n outputs from column j on of the same rows; see `layer.columns`."""
    for i in range(first, last):
        at = out + i * stride + 4 * j
        line = floats(at, n) if mode == SET else room.line[:n]
        _finish_row(layer, room, i, j, line)
        if mode == ADD:
            row = floats(at, n)
            for c in range(n):
                row[c] += line[c]
        elif mode == BFLOAT16:
            round_part(rows_of(tiles, out, stride), i, j, line)


@compiled()
def _finish(row, scale, bias, line):
    for j in range(line.size):
        line[j] = row[j] * scale[j] + bias[j]


@compiled()
def _finish_row(layer, room, i, j, line):
    """line = outputs j .. of row i, from its sums."""
    n = line.size
    scale, bias = floats(layer.scale + 4 * j, n), floats(layer.bias + 4 * j, n)
    _finish(room.sums[i], scale, bias, line)
    if layer.gate != 0:
        gate = room.gate_line[:n]
        scale, bias = floats(layer.gate_scale + 4 * j, n), floats(layer.gate_bias + 4 * j, n)
        _finish(room.gate_sums[i], scale, bias, gate)
        activate_row(gate, room.zeros[:n], layer.activation)
        for c in range(n):
            line[c] *= gate[c]
    elif layer.activation >= 0:
        activate_row(line, room.zeros[:n], layer.activation)
