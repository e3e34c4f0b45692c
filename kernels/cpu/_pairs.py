"""Sums of products of 16-bit integers, in 32 bits and exact: pairs of inputs at a time, by vpdpwssd or vpmaddwd on
x86-64, and by widening multiplications elsewhere.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from astra_mpi.kernels.cpu._features import features
from astra_mpi.kernels.cpu._simd import I16, I32, I64, LANES, spread

_PAIRS, _SUMS = ir.VectorType(I16, 2 * LANES), ir.VectorType(I32, LANES)
#: rows and strips of a tile, so that its sums fit the registers
ROWS, STRIPS = (8, 2) if "avx512f" in features() else (4, 1)


def _tile(n_rows: int, n_strips: int):
    """An intrinsic f(a, lda, b, ldb, c, ldc, n) on addresses and strides in bytes:

    c (n_rows, 16 n_strips) int32 = a @ b.

    Rows of a are n > 0 words of two int16; strip s of b lies at b + s * ldb: (n, 16) words.
    """

    def generate(context, builder, signature, arguments):
        a, lda, b, ldb, c, ldc, n = arguments

        def load(base, offset, kind, align):
            return builder.load(builder.inttoptr(builder.add(base, offset), kind.as_pointer()), align=align)

        def times(base, k):
            return builder.add(base, builder.mul(k[0], ir.Constant(I64, k[1])))

        entry, loop, done = builder.block, builder.append_basic_block("pairs"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        w = builder.phi(I64)
        w.add_incoming(ir.Constant(I64, 0), entry)
        sums = [[builder.phi(_SUMS) for _ in range(n_strips)] for _ in range(n_rows)]
        line = builder.shl(w, ir.Constant(I64, 6))
        vectors = [load(times(b, (ldb, s)), line, _PAIRS, 4) for s in range(n_strips)]
        new = []
        for r in range(n_rows):
            word = load(times(a, (lda, r)), builder.shl(w, ir.Constant(I64, 2)), I32, 4)
            row = builder.bitcast(spread(builder, word), _PAIRS)
            new.append([_add_dot(builder, sums[r][s], row, vectors[s]) for s in range(n_strips)])
        following = builder.add(w, ir.Constant(I64, 1))
        w.add_incoming(following, loop)
        for r in range(n_rows):
            for s in range(n_strips):
                sums[r][s].add_incoming(ir.Constant(_SUMS, [0] * LANES), entry)
                sums[r][s].add_incoming(new[r][s], loop)
        builder.cbranch(builder.icmp_signed("<", following, n), loop, done)
        builder.position_at_end(done)
        for r in range(n_rows):
            for s in range(n_strips):
                place = builder.add(times(c, (ldc, r)), ir.Constant(I64, 4 * LANES * s))
                builder.store(new[r][s], builder.inttoptr(place, _SUMS.as_pointer()), align=4)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, a, lda, b, ldb, c, ldc, n):
        return types.void(*[types.int64] * 7), generate

    return tile


def _add_dot(builder, total, a, b):
    """total + the two products of each pair."""
    has, words = features(), [builder.bitcast(x, _SUMS) for x in (a, b)]
    if {"avx512vnni", "avx512f"} <= has:
        dot = ir.InlineAsm(ir.FunctionType(_SUMS, [_SUMS] * 3), "vpdpwssd $2, $3, $0", "=v,0,v,v")
        return builder.call(dot, [total, *words])
    if {"avx512bw", "avx512f"} <= has:
        dot = ir.InlineAsm(ir.FunctionType(_SUMS, [_SUMS] * 2), "vpmaddwd $1, $2, $0", "=v,v,v")
        return builder.add(total, builder.call(dot, words))
    if "avx2" in has:
        return builder.add(total, _by_halves(builder, *words))
    parts = []
    for first in (0, 1):
        lanes = ir.Constant(_SUMS, [2 * lane + first for lane in range(LANES)])
        halves = (builder.shuffle_vector(x, x, lanes) for x in (a, b))
        parts.append(builder.mul(*(builder.sext(half, _SUMS) for half in halves)))
    return builder.add(total, builder.add(*parts))


def _by_halves(builder, a, b):
    """Products of words, by registers of AVX2."""
    half = ir.VectorType(I32, LANES // 2)
    dot = ir.InlineAsm(ir.FunctionType(half, [half] * 2), "vpmaddwd $1, $2, $0", "=x,x,x")
    found = []
    for first in (0, LANES // 2):
        lanes = ir.Constant(half, list(range(first, first + LANES // 2)))
        found.append(builder.call(dot, [builder.shuffle_vector(x, x, lanes) for x in (a, b)]))
    return builder.shuffle_vector(*found, ir.Constant(_SUMS, list(range(LANES))))


many, one = _tile(ROWS, STRIPS), _tile(1, STRIPS)
