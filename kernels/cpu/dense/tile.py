"""A tile of a float32 product in registers, by AVX-512: rows at one address times columns at another."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from astra_mpi.kernels.cpu._features import features
from astra_mpi.kernels.cpu._simd import F32, I32, I64, LANES, prefetch

#: whether this CPU has registers for the tiles
HAS_TILES = "avx512f" in features()
_LINE = ir.VectorType(F32, LANES)


def float_tile(n_rows: int, n_vectors: int, asks: bool = False) -> Any:
    """An intrinsic f(a, lda, b, ldb, c, ldc, k, begin, ahead) on addresses and strides in bytes:

    c (n_rows, 16 n_vectors) = (begin ? 0 : c) + a (n_rows, k) @ b (k, 16 n_vectors), k at least 1. Each number is one
    fused multiply-add per term in order of k, in whatever tile. asks: for what lies `ahead` bytes after the rows of b,
    in the second-level cache.
    """
    generate = _code(n_rows, n_vectors, asks)

    @intrinsic
    def tile(typingctx, a, lda, b, ldb, c, ldc, k, begin, ahead):
        return types.void(*[types.int64] * 9), generate

    return tile


def _code(n_rows: int, n_vectors: int, asks: bool) -> Callable[..., Any]:
    zero, undefined = ir.Constant(_LINE, [0.0] * LANES), ir.Constant(_LINE, ir.Undefined)
    of_all = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    vectors = range(n_vectors)

    def generate(context, builder, signature, arguments):
        a, lda, b, ldb, c, ldc, k, begin, ahead = arguments
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_LINE, [_LINE] * 3), f"llvm.fma.v{LANES}f32"
        )

        def lane(base, vector):
            return builder.add(base, ir.Constant(I64, 4 * LANES * vector))

        def load(address, of):
            return builder.load(builder.inttoptr(address, of.as_pointer()), align=4)

        rows, outs = [a], [c]
        for _ in range(n_rows - 1):
            rows.append(builder.add(rows[-1], lda))
            outs.append(builder.add(outs[-1], ldc))
        entry, again = builder.block, builder.append_basic_block("again")
        loop, done = builder.append_basic_block("terms"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed("!=", begin, ir.Constant(I64, 0)), loop, again)
        builder.position_at_end(again)
        earlier = [[load(lane(out, v), _LINE) for v in vectors] for out in outs]
        builder.branch(loop)
        builder.position_at_end(loop)
        q, below = builder.phi(I64), builder.phi(I64)
        sums = [[builder.phi(_LINE) for _ in vectors] for _ in rows]
        for block in (entry, again):
            q.add_incoming(ir.Constant(I64, 0), block)
            below.add_incoming(b, block)
        columns = [load(lane(below, v), _LINE) for v in vectors]
        if asks:
            for v in vectors:
                prefetch(builder, lane(builder.add(below, ahead), v))
        place = builder.shl(q, ir.Constant(I64, 2))
        for row, before, partial in zip(rows, earlier, sums, strict=True):
            scalar = builder.insert_element(undefined, load(builder.add(row, place), F32), ir.Constant(I32, 0))
            spread = builder.shuffle_vector(scalar, undefined, of_all)
            for v in vectors:
                partial[v].add_incoming(zero, entry)
                partial[v].add_incoming(before[v], again)
                partial[v].add_incoming(builder.call(fused, [spread, columns[v], partial[v]]), loop)
        following = builder.add(q, ir.Constant(I64, 1))
        q.add_incoming(following, loop)
        below.add_incoming(builder.add(below, ldb), loop)
        builder.cbranch(builder.icmp_signed("<", following, k), loop, done)
        builder.position_at_end(done)
        for out, partial in zip(outs, sums, strict=True):
            for v in vectors:
                pointer = builder.inttoptr(lane(out, v), _LINE.as_pointer())
                builder.store(partial[v].incomings[2][0], pointer, align=4)
        return context.get_dummy_value()

    return generate
