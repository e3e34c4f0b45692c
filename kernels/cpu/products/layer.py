"""A linear layer on a panel of rows in one go: products, scales, bias, activation, gate and residual sum, while the
panel's sums are in the cache; and two layers in a row, between which nothing leaves it.

Everything here is compiled and works on addresses; `calls.py` has what Python calls.
"""

import numpy as np
from numba import types
from numba.extending import overload

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu.products import amx, avx512, by_tiles, by_vectors
from astra_mpi.kernels.cpu.products.parts import BFLOAT16, SET
from astra_mpi.kernels.cpu.products.rows import narrow_rows

#: literal numbers and unsigned addresses would have functions compiled once more for them
i64 = np.int64


def columns(tiles, layer, room, n_rows, first, last, out, stride, mode):
    """Outputs first .. last (multiples of 32, or the end) of the panel's rows, to rows `stride` bytes apart at `out`.

    tiles: of AMX, or None. mode: SET or ADD float32, or BFLOAT16, and `out` is a panel whose rows have `stride` bytes.
    """
    raise NotImplementedError


@overload(columns)
def _columns(tiles, layer, room, n_rows, first, last, out, stride, mode):
    by = (by_vectors if isinstance(tiles, types.NoneType) else by_tiles).columns
    return lambda tiles, layer, room, n_rows, first, last, out, stride, mode: by(
        tiles, layer, room, n_rows, first, last, out, stride, mode
    )


@compiled()
def linear(tiles, layer, rows, room, first, last, out, stride, mode):
    """Outputs first .. last of a layer for rows of float32, a panel of room.panel's rows at a time; as `columns`."""
    step = panel_rows(room)
    for i in range(0, rows.n, step):
        n_rows = min(step, rows.n - i)
        at, panel = rows.at + i * rows.stride, room.panel
        narrow_rows(tiles, at, rows.stride, n_rows, layer.k, panel, room.factors, room.offsets)
        columns(tiles, layer, room, n_rows, first, last, out + i * stride, stride, mode)


@compiled()
def panel_rows(room):
    """Rows of a panel, without those that products may compute beyond its end."""
    return room.panel.shape[0] - SPARE_ROWS


#: of a panel, beyond its end
SPARE_ROWS = max(avx512.SPARE_ROWS, amx.SPARE_ROWS)


@compiled()
def linear_twice(tiles, inner, outer, rows, room, outer_room, between, out, stride, mode):
    """rows -> inner -> outer -> out. between: the inner layer's rows of a panel, (r, n) float32.

    With bfloat16 they go to the outer layer's panel as they are made, and `between` is not used.
    """
    step = min(panel_rows(room), panel_rows(outer_room))
    for i in range(0, rows.n, step):
        n_rows = min(step, rows.n - i)
        at, panel = rows.at + i * rows.stride, room.panel
        narrow_rows(tiles, at, rows.stride, n_rows, inner.k, panel, room.factors, room.offsets)
        _between(tiles, inner, room, n_rows, outer_room, between, outer_room.panel)
        columns(tiles, outer, outer_room, n_rows, i64(0), outer.n, out + i * stride, stride, mode)


def _between(tiles, inner, room, n_rows, outer_room, between, panel):
    """Fill panel, the outer layer's, with what the inner layer gives."""
    raise NotImplementedError


@overload(_between)
def _between_of(tiles, inner, room, n_rows, outer_room, between, panel):
    def rounded(tiles, inner, room, n_rows, outer_room, between, panel):
        at, stride = i64(panel.ctypes.data), panel.strides[0]
        columns(tiles, inner, room, n_rows, i64(0), inner.n, at, stride, i64(BFLOAT16))

    def quantised(tiles, inner, room, n_rows, outer_room, between, panel):
        at, stride = i64(between.ctypes.data), between.strides[0]
        columns(tiles, inner, room, n_rows, i64(0), inner.n, at, stride, i64(SET))
        narrow_rows(tiles, at, stride, n_rows, inner.n, panel, outer_room.factors, outer_room.offsets)

    return rounded if panel.dtype == types.uint16 else quantised
