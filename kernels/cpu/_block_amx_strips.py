"""Strips of weights in blocks, multiplied by AMX for many rows; `_blocks` chooses."""

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._block_amx import SUMS_BYTES, TILE_ROWS, block_sums, scale_sums
from astra_mpi.kernels.cpu._block_rows import _quantise
from astra_mpi.kernels.cpu._block_strips import _BYTES, _PAIR, _Q4_1, _copy, unpacker
from astra_mpi.kernels.cpu._block_tiles import panel_bytes
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import f32
from astra_mpi.kernels.cpu._memory import floats, integers
from astra_mpi.kernels.cpu._rows import _activate
from astra_mpi.kernels.cpu._rows import _multiply as _times
from astra_mpi.kernels.cpu.products.amx import configure, release

#: rows multiplied at a time
_ROWS = 2 * TILE_ROWS
#: of the blocks of rows that share what is unpacked
_SHARED_BYTES = 640 << 10
#: blocks whose sums wait to be scaled: in the first-level cache
_WAITING = 6
#: of their sums, after those of the blocks before
_ROOM_BYTES = (_WAITING + 1) * SUMS_BYTES
_PANEL, _PANEL_LEAST = panel_bytes(False), panel_bytes(True)

_unpack = unpacker(signed=True)
(_sums, _sums_least), (_sums_of_16, _sums_of_16_least) = (
    (block_sums(False, n_tiles), block_sums(True, n_tiles)) for n_tiles in (2, 1)
)
_scale, _scale_least = scale_sums(False), scale_sums(True)


@compiled(error_model="numpy")
def amx_strips(tiles, kind, m, k, q, scales, sums, weights, n, out, stride, index, count):
    """`_blocks.multiply_strips` of 32 rows or more. tiles: address of the `configuration`."""
    n_blocks, n_pairs, least = k // 32, -(-n // _PAIR), kind == _Q4_1
    strip = n_blocks * _BYTES[kind]
    first, last = n_pairs * index // count, n_pairs * (index + 1) // count
    of_blocks, shares = _by_blocks(scales, sums, m, n_blocks, least)
    edge = np.empty((_ROWS, _PAIR), np.float32)
    space = np.empty(_ROOM_BYTES + n_blocks * _PANEL_LEAST + 64, np.uint8)
    room = (space.ctypes.data + 63) // 64 * 64
    panel, sharing = room + _ROOM_BYTES, _sharing(k)
    configure(tiles)
    for part in range(0, m, sharing):
        end = min(m, part + sharing)
        for pair in range(first, last):
            _unpack(kind, weights + 2 * pair * strip, strip, panel, n_blocks)
            width = min(_PAIR, n - _PAIR * pair)
            for begin in range(part, end, _ROWS):
                n_tiles = 1 if end - begin <= TILE_ROWS else 2
                i = min(begin, m - n_tiles * TILE_ROWS)  # the last rows may be made twice
                scale, share = of_blocks.ctypes.data + 4 * i, shares.ctypes.data + 4 * i
                to = out + i * stride + 4 * _PAIR * pair
                target, apart = (to, stride) if width == _PAIR else (edge.ctypes.data, 4 * _PAIR)
                _multiply(n_tiles, least, q + k * i, k, scale, share, 4 * m, panel, room, target, apart, n_blocks)
                if width < _PAIR:
                    _copy(edge, n_tiles * TILE_ROWS, width, to, stride)
    release()


@compiled(error_model="numpy")
def amx_activated(tiles, m, k, rows, layer, gate, activation, n, made, index, count):
    """Rows (m, n) of int8 blocks: act(rows (m, k) @ layer + bias), or (rows @ layer + bias) * act(rows @ gate + bias).

    rows, made: addresses of numbers, scales and sums; layer, gate: kind, address of the weights (0: no gate) and of the
    biases (n,). A pair of strips gives a block of what is made, which so never leaves the cache as float32. m: 32 or
    more; n: a multiple of 32.
    """
    q, scales, sums = rows
    n_blocks, n_pairs, gated = k // 32, n // _PAIR, gate[1] != 0
    first, last = n_pairs * index // count, n_pairs * (index + 1) // count
    of_blocks, shares = _by_blocks(scales, sums, m, n_blocks, layer[0] == _Q4_1 or gate[0] == _Q4_1)
    inner_rows, gates = np.empty((_ROWS, _PAIR), np.float32), np.empty((_ROWS, _PAIR), np.float32)
    space = np.empty(_ROOM_BYTES + 2 * n_blocks * _PANEL_LEAST + 64, np.uint8)
    room = (space.ctypes.data + 63) // 64 * 64
    panel, sharing = room + _ROOM_BYTES, _sharing(k)
    panel_2, line = panel + n_blocks * _PANEL_LEAST, 4 * m
    configure(tiles)
    for part in range(0, m, sharing):
        end = min(m, part + sharing)
        for pair in range(first, last):
            strip = n_blocks * _BYTES[layer[0]]
            _unpack(layer[0], layer[1] + 2 * pair * strip, strip, panel, n_blocks)
            if gated:
                strip = n_blocks * _BYTES[gate[0]]
                _unpack(gate[0], gate[1] + 2 * pair * strip, strip, panel_2, n_blocks)
            for begin in range(part, end, _ROWS):
                n_tiles = 1 if end - begin <= TILE_ROWS else 2
                i = min(begin, m - n_tiles * TILE_ROWS)
                at, scale, share = q + k * i, of_blocks.ctypes.data + 4 * i, shares.ctypes.data + 4 * i
                to = inner_rows.ctypes.data
                _multiply(n_tiles, layer[0] == _Q4_1, at, k, scale, share, line, panel, room, to, 4 * _PAIR, n_blocks)
                if gated:
                    to = gates.ctypes.data
                    _multiply(
                        n_tiles, gate[0] == _Q4_1, at, k, scale, share, line, panel_2, room, to, 4 * _PAIR, n_blocks
                    )
                biases = layer[2] + 4 * _PAIR * pair, gate[2] + 4 * _PAIR * pair
                _activated(n_tiles * TILE_ROWS, inner_rows, gates, gated, biases, activation)
                _quantised(n_tiles * TILE_ROWS, inner_rows, made, i, pair, n_pairs)
    release()


@inner(error_model="numpy")
def _activated(n_rows, rows, gates, gated, biases, activation):
    """Rows, with their gates or without, in place."""
    bias, gate_bias = floats(biases[0], _PAIR), floats(biases[1], _PAIR)
    if not gated:
        _activate(rows[:n_rows], bias, activation)
        return
    _activate(gates[:n_rows], gate_bias, activation)
    _times(rows[:n_rows], bias, gates)


@inner(error_model="numpy")
def _quantised(n_rows, rows, made, first, pair, n_pairs):
    """Rows become blocks `pair` of rows `first` and after it."""
    q, scales, sums = made
    for r in range(n_rows):
        block = (first + r) * n_pairs + pair
        at = rows.ctypes.data + 4 * _PAIR * r
        _quantise(at, q + 32 * block, scales + 4 * block, sums + 4 * block, 1)


@inner(error_model="numpy")
def _sharing(k):
    """Rows that share what is unpacked: their blocks stay in the second-level cache."""
    return max(_ROWS, _SHARED_BYTES // k // _ROWS * _ROWS)


@inner(error_model="numpy")
def _multiply(n_tiles, least, q, k, scales, shares, line, panel, room, out, ldo, n_blocks):
    """out (16 n_tiles, 32) = rows @ the panel, some blocks at a time."""
    per_block, tile, sums = _PANEL_LEAST if least else _PANEL, SUMS_BYTES // 4, room + SUMS_BYTES
    for b in range(0, n_blocks, _WAITING):
        blocks, here = min(_WAITING, n_blocks - b), panel + b * per_block
        if least:
            if n_tiles == 2:
                _sums_least(q + 32 * b, k, here, sums, blocks)
            else:
                _sums_of_16_least(q + 32 * b, k, here, sums, blocks)
        elif n_tiles == 2:
            _sums(q + 32 * b, k, here, sums, blocks)
        else:
            _sums_of_16(q + 32 * b, k, here, sums, blocks)
        ends = b + blocks == n_blocks
        for t in range(2 * n_tiles):
            rows, s = TILE_ROWS * (t // 2), t % 2
            scale, share = scales + line * b + 4 * rows, shares + line * b + 4 * rows
            found, factors, total = sums + tile * t, here + 64 * s, room + tile * t
            to, apart = (out + rows * ldo + 64 * s, ldo) if ends else (total, 64)
            earlier, step = total if b else 0, 2 * n_tiles * tile
            if least:
                _scale_least(found, step, scale, share, line, factors, earlier, to, apart, blocks)
            else:
                _scale(found, step, scale, share, line, factors, earlier, to, apart, blocks)


@compiled(error_model="numpy")
def _by_blocks(scales, sums, m, n_blocks, least):
    """Of every block: scales of all rows, and these times the sums of the rows' numbers, if blocks have least
    weights; (n_blocks, m)."""
    factors, totals = floats(scales, m * n_blocks).reshape(m, n_blocks), integers(sums, m * n_blocks)
    of_blocks, shares = np.empty((n_blocks, m), np.float32), np.empty((n_blocks if least else 0, m), np.float32)
    for b in range(n_blocks):
        for i in range(m):
            of_blocks[b, i] = factors[i, b]
            if least:
                shares[b, i] = factors[i, b] * f32(totals[i * n_blocks + b])
    return of_blocks, shares
