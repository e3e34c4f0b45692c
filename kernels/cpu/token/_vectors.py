"""Loops in vectors of 16 numbers whose shape matters more than LLVM knows: rows of a matrix, several at a time."""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._memory import floats
from astra_mpi.kernels.cpu._simd import _DOT as DOT
from astra_mpi.kernels.cpu._simd import F32, I8, I16, I32, I64, LANES

FLOATS, WORDS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
#: kind of stored numbers -> their type and bytes
STORED = {"float32": (F32, 4), "float16": (I16, 2), "bfloat16": (I16, 2), "int8": (I8, 1)}
_FLAGS = ("reassoc", "contract", "nsz", "arcp")


@inner()
def copy(source, target, n):
    """n float32 from one address to another."""
    numbers, copies = floats(source, n), floats(target, n)
    for j in range(n):
        copies[j] = numbers[j]


@inner()
def fill(target, n, value):
    """n float32 become `value`."""
    numbers = floats(target, n)
    for j in range(n):
        numbers[j] = value


def _widened(builder: ir.IRBuilder, kind: str, stored: ir.Value) -> ir.Value:
    """16 stored numbers as float32; float16 by its bits, because not every processor has the instruction."""

    def words(n: int) -> ir.Constant:
        return ir.Constant(WORDS, [n] * LANES)

    if kind == "float32":
        return stored
    if kind == "int8":
        return builder.sitofp(builder.sext(stored, WORDS), FLOATS)
    wide = builder.zext(stored, WORDS)
    if kind == "bfloat16":
        return builder.bitcast(builder.shl(wide, words(16)), FLOATS)
    magnitude = builder.bitcast(builder.shl(builder.and_(wide, words(0x7FFF)), words(13)), FLOATS)
    shifted = builder.fmul(magnitude, ir.Constant(FLOATS, [2.0**112] * LANES))
    sign = builder.shl(builder.and_(wide, words(0x8000)), words(16))
    return builder.bitcast(builder.or_(builder.bitcast(shifted, WORDS), sign), FLOATS)


def _pointer(builder: ir.IRBuilder, address: ir.Value, of: ir.Type) -> ir.Value:
    return builder.inttoptr(address, of.as_pointer())


def _strided(builder: ir.IRBuilder, base: ir.Value, step: ir.Value, n: int) -> list[ir.Value]:
    """Addresses base, base + step, .."""
    every = [base]
    for _ in range(n - 1):
        every.append(builder.add(every[-1], step))
    return every


def dots_tile(n_parts: int, n_tokens: int) -> Any:
    """An intrinsic f(x, ldx, w, out, ldo, n_vectors) on addresses and strides in bytes:

    out (n_tokens, 1) float32 = x (n_tokens, 16 n_vectors) @ w (16 n_vectors,), all float32. n_vectors is a multiple of
    n_parts, the sums under way for each token.
    """

    def generate(context, builder, signature, arguments):
        x, ldx, w, out, ldo, n_vectors = arguments
        tokens = _strided(builder, x, ldx, n_tokens)
        entry = builder.block
        loop, done = builder.append_basic_block("vectors"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        v = builder.phi(I64)
        v.add_incoming(ir.Constant(I64, 0), entry)
        sums = [[builder.phi(FLOATS) for _ in range(n_parts)] for _ in tokens]
        line = builder.shl(v, ir.Constant(I64, 6))

        def load(address, part):
            place = builder.add(builder.add(address, line), ir.Constant(I64, 64 * part))
            return builder.load(_pointer(builder, place, FLOATS), align=4)

        weights = [load(w, part) for part in range(n_parts)]
        new = [
            [
                builder.fadd(builder.fmul(load(token, part), weights[part], _FLAGS), of_token[part], _FLAGS)
                for part in range(n_parts)
            ]
            for token, of_token in zip(tokens, sums, strict=True)
        ]
        for of_token, new_of_token in zip(sums, new, strict=True):
            for total, new_total in zip(of_token, new_of_token, strict=True):
                total.add_incoming(ir.Constant(FLOATS, [0.0] * LANES), entry)
                total.add_incoming(new_total, loop)
        following = builder.add(v, ir.Constant(I64, n_parts))
        v.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, n_vectors), loop, done)
        builder.position_at_end(done)
        for place, of_token in zip(_strided(builder, out, ldo, n_tokens), new, strict=True):
            total = of_token[0]
            for other in of_token[1:]:
                total = builder.fadd(total, other, _FLAGS)
            builder.store(_sum(builder, total), _pointer(builder, place, F32), align=4)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, x, ldx, w, out, ldo, n_vectors):
        return types.void(*[types.int64] * 6), generate

    return tile


def strip_tile(kind: str, n_parts: int) -> Any:
    """An intrinsic f(a, b, c, n_words) on addresses: c (16,) 32-bit sums = a (n_words,) @ one strip b (n_words, 16).

    Words are those of `dot_tile`. n_words is a multiple of n_parts, the sums under way.
    """
    asm, element = DOT[kind]
    sums = ir.VectorType(element, LANES)

    def generate(context, builder, signature, arguments):
        a, b, c, n_words = arguments
        dot = ir.InlineAsm(ir.FunctionType(sums, [sums, WORDS, WORDS]), asm, "=v,0,v,v")
        entry = builder.block
        loop, done = builder.append_basic_block("words"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        q = builder.phi(I64)
        q.add_incoming(ir.Constant(I64, 0), entry)
        totals = [builder.phi(sums) for _ in range(n_parts)]
        word, line = builder.shl(q, ir.Constant(I64, 2)), builder.shl(q, ir.Constant(I64, 6))
        new = []
        for part, total in enumerate(totals):
            place = builder.add(builder.add(a, word), ir.Constant(I64, 4 * part))
            stored = builder.add(builder.add(b, line), ir.Constant(I64, 64 * part))
            factor = _spread_word(builder, builder.load(_pointer(builder, place, I32), align=4))
            weights = builder.load(_pointer(builder, stored, WORDS), align=64)
            new.append(builder.call(dot, [total, factor, weights]))
            total.add_incoming(ir.Constant(sums, [0] * LANES), entry)
        following = builder.add(q, ir.Constant(I64, n_parts))
        q.add_incoming(following, loop)
        for total, new_total in zip(totals, new, strict=True):
            total.add_incoming(new_total, loop)
        builder.cbranch(builder.icmp_signed("<", following, n_words), loop, done)
        builder.position_at_end(done)
        result = new[0]
        for other in new[1:]:
            result = builder.add(result, other) if element == I32 else builder.fadd(result, other)
        builder.store(result, _pointer(builder, c, sums), align=4)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, a, b, c, n_words):
        return types.void(*[types.int64] * 4), generate

    return tile


def _spread_word(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    """16 times a word."""
    undefined = ir.Constant(WORDS, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(WORDS, [0] * LANES))


def _sum(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    """Of 16 numbers."""
    undefined, half = ir.Constant(FLOATS, ir.Undefined), LANES // 2
    while half:
        order = [(lane + half) % LANES for lane in range(LANES)]
        vector = builder.fadd(vector, builder.shuffle_vector(vector, undefined, ir.Constant(WORDS, order)), _FLAGS)
        half //= 2
    return builder.extract_element(vector, ir.Constant(I32, 0))


def rows_tile(kind: str, n_rows: int, n_tokens: int) -> Any:
    """An intrinsic f(x, ldx, w, ldw, out, ldo, n_vectors) on addresses and strides in bytes:

    out (n_tokens, 16 n_vectors) float32 += x (n_tokens, n_rows) float32 @ w (n_rows, 16 n_vectors) of a stored kind.
    """
    element, n_bytes = STORED[kind]
    stored = ir.VectorType(element, LANES)

    def generate(context, builder, signature, arguments):
        x, ldx, w, ldw, out, ldo, n_vectors = arguments

        def factor(token, r):
            place = builder.add(token, ir.Constant(I64, 4 * r))
            return _spread(builder, builder.load(_pointer(builder, place, F32), align=4))

        factors = [[factor(token, r) for r in range(n_rows)] for token in _strided(builder, x, ldx, n_tokens)]
        rows, outs = _strided(builder, w, ldw, n_rows), _strided(builder, out, ldo, n_tokens)
        entry = builder.block
        loop, done = builder.append_basic_block("vectors"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        v = builder.phi(I64)
        v.add_incoming(ir.Constant(I64, 0), entry)
        place, line = builder.mul(v, ir.Constant(I64, LANES * n_bytes)), builder.shl(v, ir.Constant(I64, 6))

        def weight(row):
            where = _pointer(builder, builder.add(row, place), stored)
            return _widened(builder, kind, builder.load(where, align=n_bytes))

        wide = [weight(row) for row in rows]
        for of_token, target in zip(factors, outs, strict=True):
            where = _pointer(builder, builder.add(target, line), FLOATS)
            total = builder.load(where, align=4)
            for one, numbers in zip(of_token, wide, strict=True):
                total = builder.fadd(builder.fmul(one, numbers, _FLAGS), total, _FLAGS)
            builder.store(total, where, align=4)
        following = builder.add(v, ir.Constant(I64, 1))
        v.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, n_vectors), loop, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, x, ldx, w, ldw, out, ldo, n_vectors):
        return types.void(*[types.int64] * 7), generate

    return tile


def _spread(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    """16 times a number."""
    undefined = ir.Constant(FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(WORDS, [0] * LANES))
