"""Products with weights in blocks of 32 inputs (kernels/blocks.py has the layout): rows become int8 blocks too.

With AVX-512 and VNNI, a few rows read the weights as they are stored, which the speed of memory limits; many rows share
strips that are unpacked once, and are multiplied by AMX where the process takes it for int8. A row's result is the same
to the bit in any of these ways, and however the work is divided.
Elsewhere a few rows are multiplied in integers, and many as float32.
"""

import numpy as np

from astra_mpi.kernels._compile import Native
from astra_mpi.kernels.aligned import address
from astra_mpi.kernels.blocks import BLOCK, BLOCK_KINDS, Layer, Rows
from astra_mpi.kernels.cpu import _team
from astra_mpi.kernels.cpu._block_amx import configuration
from astra_mpi.kernels.cpu._block_amx_strips import amx_activated, amx_strips
from astra_mpi.kernels.cpu._block_portable import portable_strips, widen_strips
from astra_mpi.kernels.cpu._block_rows import quantise_into, quantise_rows
from astra_mpi.kernels.cpu._block_strips import tiled_strips
from astra_mpi.kernels.cpu._block_tiles import has_tiles
from astra_mpi.kernels.cpu._features import path
from astra_mpi.kernels.cpu._matmul import matmul
from astra_mpi.kernels.cpu._memory import longs
from astra_mpi.kernels.cpu._rows import ACTIVATIONS

__all__ = [
    "HAS_TILES",
    "activated_blocks",
    "multiply_blocks",
    "multiply_strips",
    "quantise_into",
    "quantise_rows",
    "widen_blocks",
]

Array = np.ndarray

#: whether the instructions of `_block_tiles` are among those that kernels are compiled for
HAS_TILES = has_tiles()
#: the kernel of `multiply_blocks`, to be called from compiled functions:
#: multiply_strips(kind, m, k, q, scales, sums, weights, n, out, stride, index, count) does share `index` of `count`
#: of out (m, n) = rows (m, k), as `quantise_into` gives them, @ weights (k, n). Shares are of 32 columns.
#: All arrays are addresses, out with rows `stride` bytes apart; kind: place in BLOCK_KINDS
multiply_strips = tiled_strips if HAS_TILES else portable_strips
#: rows from which on AMX gains more than it costs to unpack the weights for it
_AMX_ROWS = 33
_AMX = configuration()
#: without tiles: up to so many rows are multiplied in integers
_INTEGER_ROWS = 4
#: numbers of what a product of strips takes
_PLACES = 11
#: bytes of weights times rows from which on threads share the work
_LEAST_SHARED = 1 << 18


def multiply_blocks(kind: str, rows: Rows, weights: Array, out: Array) -> Array:
    """out (m, n) = rows (as `quantise_rows` gives them) @ weights (k, n) in blocks; see reference. out: row-strided."""
    q, scales, sums = rows
    if not HAS_TILES and len(q) > _INTEGER_ROWS:
        return _multiply_wide(kind, rows, weights, out)
    places = *map(address, (q, scales, sums, weights)), out.shape[1], address(out), out.strides[0]
    given = address(_AMX), BLOCK_KINDS.index(kind), *q.shape, *places
    task = _amx_strips if _by_amx(len(q)) else _strips
    _team.run_native(task, lambda index, count: given, alone=len(q) * weights.size < _LEAST_SHARED)
    return out


@Native
def _strips(at, index, count):
    w = longs(at, _PLACES)
    multiply_strips(w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], index, count)
    return 1


@Native
def _amx_strips(at, index, count):
    w = longs(at, _PLACES)
    amx_strips(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], index, count)
    return 1


def activated_blocks(x: Array, layer: Layer, gate: Layer | None, activation: str) -> Rows | None:
    """x (m, k) in int8 blocks -> int8 blocks (m, n) of act(x @ layer), or of (x @ layer) * act(x @ gate), in one go.

    To the bit what `multiply_blocks`, `activate` and `quantise_rows` give one after another. None where these do it.
    """
    (m, k), n = x.shape, layer.n
    if n % BLOCK or not _by_amx(m):
        return None
    rows = quantise_rows(x)
    made = np.empty((m, n), np.int8), np.empty((m, n // BLOCK), np.float32), np.empty((m, n // BLOCK), np.int32)
    places = [tuple(map(address, blocks)) for blocks in (rows, made)]
    biases = [np.zeros(n, np.float32) if one is None or one.bias is None else one.bias for one in (layer, gate)]
    layers = [
        (0 if one is None else BLOCK_KINDS.index(one.kind), address(one and one.weights), address(bias))
        for one, bias in zip((layer, gate), biases, strict=True)
    ]
    given = address(_AMX), m, k, n, ACTIVATIONS[activation], *(one for of in (*places, *layers) for one in of)
    _team.run_native(_amx_activated, lambda index, count: given)
    return made


@Native
def _amx_activated(at, index, count):
    w = longs(at, 5 + 4 * 3)
    rows, made, layer, gate = (w[5], w[6], w[7]), (w[8], w[9], w[10]), (w[11], w[12], w[13]), (w[14], w[15], w[16])
    amx_activated(w[0], w[1], w[2], rows, layer, gate, w[4], w[3], made, index, count)
    return 1


def _by_amx(n_rows: int) -> bool:
    return HAS_TILES and n_rows >= _AMX_ROWS and path("int8").name == "amx"


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
        matmul(x, widen_blocks(kind, weights, first, tile), out[:, first : first + width])
    return out
