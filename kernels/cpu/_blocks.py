"""Products with weights in blocks of 32 inputs (kernels/blocks.py has the layout): rows become int8 blocks too.

With AVX-512 and VNNI, a few rows read the weights as they are stored, which the speed of memory limits; many rows share
strips that are unpacked once. A row's result is the same to the bit either way, and however the work is divided.
Elsewhere a few rows are multiplied in integers, and many as float32.
"""

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.blocks import BLOCK_KINDS, Rows
from astra_mpi.kernels.cpu._block_portable import portable_strips, widen_strips
from astra_mpi.kernels.cpu._block_strips import tiled_strips
from astra_mpi.kernels.cpu._block_tiles import has_tiles
from astra_mpi.kernels.cpu._math import f32, i32

Array = np.ndarray

#: whether the instructions of `_block_tiles` are among those that kernels are compiled for
HAS_TILES = has_tiles()
#: the kernel of `multiply_blocks`, to be called from compiled functions:
#: multiply_strips(kind, q, scales, sums, weights, n, out, stride, index, count) does share `index` of `count` of
#: out (m, n) float32, at this address with rows `stride` bytes apart = the rows (C-contiguous arrays) @ the weights at
#: the address `weights`; kind: place in BLOCK_KINDS
multiply_strips = tiled_strips if HAS_TILES else portable_strips
#: without tiles: up to so many rows are multiplied in integers
_INTEGER_ROWS = 4


def quantise_rows(x: Array) -> Rows:
    """x (m, k) float32 -> int8 blocks (m, k), float32 scales (m, k / 32) and int32 sums; see reference."""
    m, k = x.shape
    rows = np.empty((m, k), np.int8), np.empty((m, k // 32), np.float32), np.empty((m, k // 32), np.int32)
    quantise_into(np.ascontiguousarray(x, np.float32), *rows)
    return rows


def multiply_blocks(kind: str, rows: Rows, weights: Array, out: Array) -> Array:
    """out (m, n) = rows (as `quantise_rows` gives them) @ weights (k, n) in blocks; see reference. out: row-strided."""
    q, scales, sums = rows
    if not HAS_TILES and len(q) > _INTEGER_ROWS:
        return _multiply_wide(kind, rows, weights, out)
    place = weights.ctypes.data, out.shape[1], out.ctypes.data, out.strides[0]
    multiply_strips(BLOCK_KINDS.index(kind), q, scales, sums, *place, 0, 1)
    return out


def widen_blocks(kind: str, weights: Array, first: int, out: Array) -> Array:
    """out (k, w) = columns first .. first + w of weights in blocks as float32, to the bit; see reference."""
    stored = weights.view()
    stored.flags.writeable = False
    widen_strips(BLOCK_KINDS.index(kind), stored, first, out)
    return out


def _multiply_wide(kind: str, rows: Rows, weights: Array, out: Array) -> Array:
    """`multiply_blocks` of what the int8 blocks stand for, in float32."""
    q, scales, _ = rows
    x = (q.reshape(*scales.shape, 32) * scales[..., None]).reshape(q.shape)
    width = max(32, (1 << 20) // q.shape[1] // 32 * 32)
    for first in range(0, out.shape[1], width):
        tile = np.empty((q.shape[1], min(width, out.shape[1] - first)), np.float32)
        np.matmul(x, widen_blocks(kind, weights, first, tile), out=out[:, first : first + width])
    return out


@compiled(error_model="numpy")
def quantise_into(x, q, scales, sums):
    """`quantise_rows` of x (m, k) into q, scales, sums; all are C-contiguous."""
    for i in range(x.shape[0]):
        for b in range(x.shape[1] // 32):
            row, numbers = x[i, 32 * b : 32 * b + 32], q[i, 32 * b : 32 * b + 32]
            top, unsure = i32(0), i32(0)
            for j in range(32):
                bits = i32(f32(row[j]).view(i32) & i32(0x7FFFFFFF))  # magnitudes sort as their bits do
                top = max(top, bits)
            largest = i32(top).view(f32)
            if top >= i32(0x7F800000):
                numbers[:] = 0
                scales[i, b], sums[i, b] = f32(np.nan), i32(0)
                continue
            factor = f32(127) / largest if top > unsure else f32(0)
            total = i32(0)
            for j in range(32):
                number = i32(np.rint(row[j] * factor))
                numbers[j] = np.int8(number)
                total += number
            scales[i, b], sums[i, b] = largest / f32(127), total
