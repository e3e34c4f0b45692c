"""Strips of weights in blocks, multiplied by the tiles of `_block_tiles`; `_blocks` chooses."""

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.blocks import BLOCK_KINDS
from astra_mpi.kernels.cpu._block_tiles import block_tile, panel_bytes, panel_tile, unpack_strips
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._memory import floats, integers

_Q8_0, _Q4_0, _Q4_1 = range(3)
#: by kind: bytes of a strip's block, and what is added to stored numbers
_BYTES, _ADDED = (544, 288, 320), (128, 8, 0)
#: outputs of two strips
_PAIR = 32
#: rows at a time where weights are read as they are stored, and up to how many rows they are
_FEW, _MOST_FEW = 4, 32
#: rows at a time where weights are unpacked first, and rows that share them, of which the blocks stay in the cache
_TILE, _SHARING = 4, 240

(_one_8, _few_8), (_one_4, _few_4), (_one_41, _few_41) = (
    (block_tile(kind, 1), block_tile(kind, _FEW)) for kind in BLOCK_KINDS
)
_many, _many_least = panel_tile(False, _TILE), panel_tile(True, _TILE)
_PANEL = panel_bytes(True)


def unpacker(signed=False):
    """A compiled f(kind, weights, strip, panel, n_blocks): `unpack_strips` of any kind."""
    unpack_8, unpack_4, unpack_41 = (unpack_strips(kind, signed) for kind in BLOCK_KINDS)

    @inner(error_model="numpy")
    def unpack(kind, weights, strip, panel, n_blocks):
        if kind == _Q8_0:
            unpack_8(weights, strip, panel, n_blocks)
        elif kind == _Q4_0:
            unpack_4(weights, strip, panel, n_blocks)
        else:
            unpack_41(weights, strip, panel, n_blocks)

    return unpack


_unpack = unpacker()


@compiled(error_model="numpy")
def tiled_strips(kind, m, k, q, scales, sums, weights, n, out, stride, index, count):
    """`_blocks.multiply_strips`. A share is of whole pairs of strips."""
    n_pairs = -(-n // _PAIR)
    first, last = n_pairs * index // count, n_pairs * (index + 1) // count
    if m <= _MOST_FEW:
        _few_rows(kind, m, k // 32, q, scales, sums, weights, n, out, stride, first, last)
    else:
        _many_rows(kind, m, k // 32, q, scales, sums, weights, n, out, stride, first, last)


@compiled(error_model="numpy")
def _few_rows(kind, m, n_blocks, q, scales, sums, weights, n, out, stride, first, last):
    strip, rows = n_blocks * _BYTES[kind], _FEW if m >= _FEW else 1
    edge = np.empty((_FEW, _PAIR), np.float32)
    for pair in range(first, last):
        place, width = weights + 2 * pair * strip, min(_PAIR, n - _PAIR * pair)
        for begin in range(0, m, rows):
            i = min(begin, m - rows)  # the last rows may be made twice
            row = q + 32 * n_blocks * i
            scale, total = scales + 4 * n_blocks * i, sums + 4 * n_blocks * i
            to = out + i * stride + 4 * _PAIR * pair
            target, apart = (to, stride) if width == _PAIR else (edge.ctypes.data, 4 * _PAIR)
            if rows == 1:
                if kind == _Q8_0:
                    _one_8(row, scale, total, place, strip, target, apart, n_blocks)
                elif kind == _Q4_0:
                    _one_4(row, scale, total, place, strip, target, apart, n_blocks)
                else:
                    _one_41(row, scale, total, place, strip, target, apart, n_blocks)
            elif kind == _Q8_0:
                _few_8(row, scale, total, place, strip, target, apart, n_blocks)
            elif kind == _Q4_0:
                _few_4(row, scale, total, place, strip, target, apart, n_blocks)
            else:
                _few_41(row, scale, total, place, strip, target, apart, n_blocks)
            if width < _PAIR:
                _copy(edge, rows, width, to, stride)


@compiled(error_model="numpy")
def _many_rows(kind, m, n_blocks, q, scales, sums, weights, n, out, stride, first, last):
    strip = n_blocks * _BYTES[kind]
    totals = integers(sums, m * n_blocks)
    starts = totals if kind == _Q4_1 else totals * np.int32(-_ADDED[kind])
    edge, space = np.empty((_TILE, _PAIR), np.float32), np.empty(n_blocks * _PANEL + 64, np.uint8)
    panel = (space.ctypes.data + 63) // 64 * 64
    for part in range(0, m, _SHARING):
        for pair in range(first, last):
            place, width = weights + 2 * pair * strip, min(_PAIR, n - _PAIR * pair)
            _unpack(kind, place, strip, panel, n_blocks)
            for begin in range(part, min(m, part + _SHARING), _TILE):
                i = min(begin, m - _TILE)  # the last rows may be made twice
                row = q + 32 * n_blocks * i
                scale, start = scales + 4 * n_blocks * i, starts.ctypes.data + 4 * n_blocks * i
                to = out + i * stride + 4 * _PAIR * pair
                target, apart = (to, stride) if width == _PAIR else (edge.ctypes.data, 4 * _PAIR)
                if kind == _Q4_1:
                    _many_least(row, scale, start, panel, target, apart, n_blocks)
                else:
                    _many(row, scale, start, panel, target, apart, n_blocks)
                if width < _PAIR:
                    _copy(edge, _TILE, width, to, stride)


@compiled(error_model="numpy")
def _copy(edge, n_rows, width, to, stride):
    for r in range(n_rows):
        line = floats(to + r * stride, width)
        for j in range(width):
            line[j] = edge[r, j]
