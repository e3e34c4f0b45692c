"""One row of int8 blocks times strips of weights in blocks, strip after strip as they lie in memory."""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from astra_mpi.kernels.cpu._block_tiles import LAYOUTS, Code, Loop, _starts
from astra_mpi.kernels.cpu._simd import F32, I32, I64, LANES, prefetch

_ZERO = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)

#: bytes ahead that are asked for: the CPU itself asks for none beyond a page of memory
_AHEAD = 2048


def block_strip(kind: str) -> Any:
    """An intrinsic f(q, scales, sums, weights, out, n_blocks) on addresses:

    out (16,) float32 = a row of int8 blocks @ one strip as it is stored, as `block_tile` computes it.
    """
    n_bytes, before, shift = LAYOUTS[kind]

    def generate(context, builder, signature, arguments):
        q, scales, sums, weights, out, n_blocks = arguments
        code = Code(builder)
        zero = ir.Constant(ir.VectorType(F32, LANES), [0.0] * LANES)
        loop = Loop(builder, n_blocks, [weights, zero])
        strip, total = loop.values
        for line_ahead in range(_AHEAD, _AHEAD + n_bytes, 64):
            prefetch(builder, code.at(strip, line_ahead))
        place, line = builder.shl(loop.count, ir.Constant(I64, 5)), builder.shl(loop.count, ir.Constant(I64, 2))
        row_sum, scale = code.load(builder.add(sums, line), I32), code.load(builder.add(scales, line), F32)
        parts = [_starts(code, [row_sum], shift)[0], _ZERO]  # two sums under way: neither waits for the other
        inputs = builder.add(q, place)
        for i, (word, numbers) in enumerate(code.words(kind, code.at(strip, before))):
            x = code.spread(code.load(code.at(inputs, 4 * word), I32))
            parts[i % 2] = builder.call(code.dot, [parts[i % 2], x, numbers])
        product = builder.sitofp(builder.add(*parts), zero.type)
        factors = builder.fmul(code.factors(strip), code.spread(scale))
        total = builder.call(code.fma, [product, factors, total])
        if shift is None:
            share = code.spread(builder.fmul(scale, builder.sitofp(row_sum, F32)))
            total = builder.call(code.fma, [code.factors(code.at(strip, 32)), share, total])
        loop.close([code.at(strip, n_bytes), total])
        code.store(total, out)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, q, scales, sums, weights, out, n_blocks):
        return types.void(*[types.int64] * 6), generate

    return tile
