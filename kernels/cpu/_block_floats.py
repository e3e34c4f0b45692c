"""Products of a few float32 rows with weights in blocks, which are widened in registers: read once for four rows.

Plain vector code, which LLVM makes instructions of on every CPU. A row's result does not depend on how many there are.
"""

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.blocks import BLOCK_KINDS
from astra_mpi.kernels.cpu import _team
from astra_mpi.kernels.cpu._block_tiles import LAYOUTS, Code, Loop
from astra_mpi.kernels.cpu._math import f32
from astra_mpi.kernels.cpu._memory import floats
from astra_mpi.kernels.cpu._simd import F32, I32, I64, LANES

Array = np.ndarray
_WORDS, _FLOATS = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)
#: rows at a time, and outputs of two strips
_ROWS, _PAIR = 4, 32
#: bytes of a strip's block by kind
_BYTES = tuple(LAYOUTS[kind][0] for kind in BLOCK_KINDS)


def _float_tile(kind, n_rows):
    """An intrinsic f(x, ldx, sums, weights, strip, out, ldo, n_blocks) on addresses and bytes: out (n_rows, 32) = x @
    two strips, `strip` bytes apart; sums (n_rows, n_blocks) float32 of the numbers of x."""
    n_bytes, before, shift = LAYOUTS[kind]

    def generate(context, builder, signature, arguments):
        x, ldx, sums, weights, strip, out, ldo, n_blocks = arguments
        code, zero = Code(builder), ir.Constant(_FLOATS, [0.0] * LANES)
        x_rows = code.rows(x, ldx, n_rows)
        sum_rows = code.rows(sums, builder.shl(n_blocks, ir.Constant(I64, 2)), n_rows)
        loop = Loop(builder, n_blocks, [weights, builder.add(weights, strip), *[zero] * (2 * n_rows)])
        strips, totals = loop.values[:2], loop.values[2:]
        place = builder.shl(loop.count, ir.Constant(I64, 7))
        inputs = [builder.add(row, place) for row in x_rows]
        dots = [[zero] * 4 for _ in range(n_rows)]  # two sums for each strip, so that additions wait less
        words = [code.words(kind, code.at(one, before)) for one in strips]
        for (word, first), (_, second) in zip(*words, strict=True):
            signed = [code.signed(numbers, shift) for numbers in (first, second)]
            for t in range(4):
                wide = [_byte(builder, numbers, t) for numbers in signed]
                for i, row in enumerate(inputs):
                    factor = code.spread(code.load(code.at(row, 16 * word + 4 * t), F32))
                    for s in range(2):
                        at = 2 * s + t % 2
                        dots[i][at] = builder.call(code.fma, [factor, wide[s], dots[i][at]])
        factors = [_halves(code, one) for one in strips]
        line = builder.shl(loop.count, ir.Constant(I64, 2))
        new = []
        for i in range(n_rows):
            for s in range(2):
                dot = builder.fadd(*dots[i][2 * s : 2 * s + 2])
                total = builder.call(code.fma, [factors[s], dot, totals[2 * i + s]])
                if shift is None:
                    share = code.spread(code.load(builder.add(sum_rows[i], line), F32))
                    total = builder.call(code.fma, [_halves(code, code.at(strips[s], 32)), share, total])
                new.append(total)
        loop.close([*(code.at(one, n_bytes) for one in strips), *new])
        for i, row in enumerate(code.rows(out, ldo, n_rows)):
            for s in range(2):
                code.store(new[2 * i + s], code.at(row, 64 * s))
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, x, ldx, sums, weights, strip, out, ldo, n_blocks):
        return types.void(*[types.int64] * 8), generate

    return tile


def _byte(builder, numbers, t):
    """Byte t of each word as float32."""
    up = ir.Constant(_WORDS, [24 - 8 * t] * LANES)
    return builder.sitofp(builder.ashr(builder.shl(numbers, up), ir.Constant(_WORDS, [24] * LANES)), _FLOATS)


def _halves(code, address):
    """16 float16 as float32, by integers: not every CPU has an instruction."""
    builder = code.builder
    bits = builder.zext(code.load(address, _SHORTS, 2), _WORDS)

    def constant(value):
        return ir.Constant(_WORDS, [value] * LANES)

    magnitude = builder.bitcast(builder.shl(builder.and_(bits, constant(0x7FFF)), constant(13)), _FLOATS)
    wide = builder.bitcast(builder.fmul(magnitude, ir.Constant(_FLOATS, [2.0**112] * LANES)), _WORDS)
    sign = builder.shl(builder.and_(bits, constant(0x8000)), constant(16))
    return builder.bitcast(builder.or_(wide, sign), _FLOATS)


(_one_8, _four_8), (_one_4, _four_4), (_one_41, _four_41) = (
    (_float_tile(kind, 1), _float_tile(kind, _ROWS)) for kind in BLOCK_KINDS
)


def times_blocks(kind: str, x: Array, weights: Array, out: Array) -> Array:
    """out (m, n) = x (m, k) float32 @ weights (k, n) in blocks; see reference. out: row-strided."""
    x = np.ascontiguousarray(x, np.float32)
    place = BLOCK_KINDS.index(kind), x, weights.ctypes.data, out.shape[1], out.ctypes.data, out.strides[0]
    _team.run(lambda index, count: _share(*place, index, count))
    return out


@compiled(error_model="numpy")
def _share(kind, x, weights, n, out, stride, index, count):
    m, n_blocks = x.shape[0], x.shape[1] // 32
    sums = x.reshape(m, n_blocks, 32).sum(axis=2)
    strip, rows, n_pairs = n_blocks * _BYTES[kind], _ROWS if m >= _ROWS else 1, -(-n // _PAIR)
    edge, ldx = np.empty((_ROWS, _PAIR), f32), 4 * x.shape[1]
    for pair in range(n_pairs * index // count, n_pairs * (index + 1) // count):
        place, width = weights + 2 * pair * strip, min(_PAIR, n - _PAIR * pair)
        for begin in range(0, m, rows):
            i = min(begin, m - rows)  # the last rows may be made twice
            row, total = x.ctypes.data + i * ldx, sums.ctypes.data + 4 * n_blocks * i
            to = out + i * stride + 4 * _PAIR * pair
            target, apart = (to, stride) if width == _PAIR else (edge.ctypes.data, 4 * _PAIR)
            if rows == 1:
                if kind == 0:
                    _one_8(row, ldx, total, place, strip, target, apart, n_blocks)
                elif kind == 1:
                    _one_4(row, ldx, total, place, strip, target, apart, n_blocks)
                else:
                    _one_41(row, ldx, total, place, strip, target, apart, n_blocks)
            elif kind == 0:
                _four_8(row, ldx, total, place, strip, target, apart, n_blocks)
            elif kind == 1:
                _four_4(row, ldx, total, place, strip, target, apart, n_blocks)
            else:
                _four_41(row, ldx, total, place, strip, target, apart, n_blocks)
            for r in range(rows if width < _PAIR else 0):
                line = floats(to + r * stride, width)
                for j in range(width):
                    line[j] = edge[r, j]
