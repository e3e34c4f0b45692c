"""Vector instructions that LLVM does not choose by itself, as Numba intrinsics: products of pairs of bfloat16 and of
fours of int8, with sums in 32 bits.

Written as inline assembly: the names and types of LLVM's own intrinsics change between its versions.
"""

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

llvmlite.binding.initialize_native_asmparser()

I8, I16, I32, I64, F32 = *(ir.IntType(n) for n in (8, 16, 32, 64)), ir.FloatType()
LANES = 16

#: kind -> instruction that adds products of 32 bits of each factor, and the type of its sums
_DOT = {"bfloat16": ("vdpbf16ps $2, $3, $0", F32), "int8": ("vpdpbusd $2, $3, $0", I32)}


def dot_tile(kind: str, n_rows: int, n_strips: int = 2):
    """An intrinsic f(a, lda, b, ldb, c, ldc, n_words, begin) on addresses and strides in bytes:

    c (n_rows, 16 n_strips) 32-bit sums = (begin ? 0 : c) + a (n_rows, n_words) @ b. Words are two bfloat16, or
    four int8 of a and four uint8 of b. Strip s of b lies at b + s * ldb: (n_words, 16) words.
    """
    generate = dot_tile_code(kind, n_rows, n_strips)

    @intrinsic
    def tile(typingctx, a, lda, b, ldb, c, ldc, n_words, begin):
        return types.void(*[types.int64] * 8), generate

    return tile


def dot_tile_code(kind: str, n_rows: int, n_strips: int, asks: bool = False):
    """What `dot_tile` becomes: (context, builder, signature, its eight arguments) -> code.

    asks: for the same words of the strips that follow these, n_strips further, in the second-level cache.
    """
    asm, element = _DOT[kind]
    sums, words = ir.VectorType(element, LANES), ir.VectorType(I32, LANES)

    def generate(context, builder, signature, arguments):
        a, lda, b, ldb, c, ldc, n_words, begin = arguments
        dot = ir.InlineAsm(ir.FunctionType(sums, [sums, words, words]), asm, "=v,0,v,v")
        zero = ir.Constant(sums, [0] * LANES)

        def load(address, of, align=4):
            return builder.load(builder.inttoptr(address, of.as_pointer()), align=align)

        def at(base, offset):
            return builder.add(base, offset)

        def const(n):
            return ir.Constant(I64, n)

        rows = [a]
        outs = [c]
        for _ in range(n_rows - 1):
            rows.append(at(rows[-1], lda))
            outs.append(at(outs[-1], ldc))
        strips = [b]
        for _ in range(n_strips - 1):
            strips.append(at(strips[-1], ldb))
        entry = builder.block
        again = builder.append_basic_block("again")
        loop = builder.append_basic_block("words")
        done = builder.append_basic_block("done")
        fresh = builder.icmp_signed("!=", begin, const(0))
        builder.cbranch(fresh, loop, again)
        builder.position_at_end(again)
        earlier = [[load(at(outs[i], const(64 * s)), sums) for s in range(n_strips)] for i in range(n_rows)]
        builder.branch(loop)
        builder.position_at_end(loop)
        q = builder.phi(I64)
        q.add_incoming(const(0), entry)
        q.add_incoming(const(0), again)
        acc = [[builder.phi(sums) for _ in range(n_strips)] for _ in range(n_rows)]
        for i in range(n_rows):
            for s in range(n_strips):
                acc[i][s].add_incoming(zero, entry)
                acc[i][s].add_incoming(earlier[i][s], again)
        word = builder.shl(q, const(2))
        line = builder.shl(q, const(6))
        vectors = [load(at(strip, line), words, 64) for strip in strips]
        if asks:
            further = at(line, builder.mul(ldb, const(n_strips)))
            for strip in strips:
                prefetch(builder, at(strip, further))
        new = []
        for i in range(n_rows):
            scalar = load(at(rows[i], word), I32)
            first = builder.insert_element(ir.Constant(words, ir.Undefined), scalar, ir.Constant(I32, 0))
            spread = builder.shuffle_vector(first, ir.Constant(words, ir.Undefined), ir.Constant(words, [0] * LANES))
            new.append([builder.call(dot, [acc[i][s], spread, vectors[s]]) for s in range(n_strips)])
        following = builder.add(q, const(1))
        q.add_incoming(following, loop)
        for i in range(n_rows):
            for s in range(n_strips):
                acc[i][s].add_incoming(new[i][s], loop)
        builder.cbranch(builder.icmp_signed("<", following, n_words), loop, done)
        builder.position_at_end(done)
        for i in range(n_rows):
            for s in range(n_strips):
                pointer = builder.inttoptr(at(outs[i], const(64 * s)), sums.as_pointer())
                builder.store(new[i][s], pointer, align=4)
        return context.get_dummy_value()

    return generate


def spread(builder, scalar):
    """LANES times a number."""
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def reduced(builder, vector, combine):
    """All lanes of a vector, combined by halves."""
    for apart in (8, 4, 2, 1):
        lanes = [(lane + apart) % LANES for lane in range(LANES)]
        turned = builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, LANES), lanes))
        vector = combine(vector, turned)
    return builder.extract_element(vector, ir.Constant(I32, 0))


def prefetch(builder, address):
    """Ask for a cache line, to be read soon, in the second-level cache."""
    bytes_at, kind = (
        ir.IntType(8).as_pointer(),
        ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), *[I32] * 3]),
    )
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    to_read, near, data = ir.Constant(I32, 0), ir.Constant(I32, 2), ir.Constant(I32, 1)
    builder.call(function, [builder.inttoptr(address, bytes_at), to_read, near, data])
