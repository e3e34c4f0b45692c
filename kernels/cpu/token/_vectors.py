"""Loops in vectors of 16 numbers whose shape matters more than LLVM knows: rows of a matrix, several at a time."""

from typing import Any

from llvmlite import ir
from numba import carray, njit
from numba.core import types
from numba.extending import intrinsic

from astra_mpi.kernels.cpu._simd import F32, I8, I32, I64, LANES

I16 = ir.IntType(16)
FLOATS, WORDS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
#: kind of stored numbers -> their type and bytes
STORED = {"float32": (F32, 4), "float16": (I16, 2), "bfloat16": (I16, 2), "int8": (I8, 1)}
_FLAGS = ("reassoc", "contract", "nsz", "arcp")


def _at(element: types.Type, stored: ir.Type) -> Any:
    """An intrinsic: address -> pointer to numbers of a type."""

    @intrinsic
    def pointer(typingctx, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], stored.as_pointer())

        return types.CPointer(element)(types.int64), generate

    return pointer


_floats_at, _shorts_at = _at(types.float32, F32), _at(types.uint16, I16)
_bytes_at, _integers_at, _bits_at = _at(types.int8, I8), _at(types.int32, I32), _at(types.uint32, I32)


@njit
def floats(address, n):
    """(n,) float32 in memory."""
    return carray(_floats_at(address), (n,))


@njit
def float_rows(address, n, width):
    """(n, width) float32 in memory."""
    return carray(_floats_at(address), (n, width))


@njit
def shorts(address, n):
    """(n,) uint16 in memory."""
    return carray(_shorts_at(address), (n,))


@njit
def signed_bytes(address, n):
    """(n,) int8 in memory."""
    return carray(_bytes_at(address), (n,))


@njit
def integers(address, n):
    """(n,) int32 in memory."""
    return carray(_integers_at(address), (n,))


@njit
def bits(address, n):
    """(n,) uint32 in memory."""
    return carray(_bits_at(address), (n,))


@njit
def copy(source, target, n):
    """n float32 from one address to another."""
    numbers, copies = floats(source, n), floats(target, n)
    for j in range(n):
        copies[j] = numbers[j]


@njit
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


def rows_tile(kind: str, n_rows: int, n_tokens: int) -> Any:
    """An intrinsic f(x, ldx, w, ldw, out, ldo, n_vectors) on addresses and strides in bytes:

    out (n_tokens, 16 n_vectors) float32 += x (n_tokens, n_rows) float32 @ w (n_rows, 16 n_vectors) of a stored kind.
    """
    element, n_bytes = STORED[kind]

    def generate(context, builder, signature, arguments):
        x, ldx, w, ldw, out, ldo, n_vectors = arguments

        def const(n):
            return ir.Constant(I64, n)

        def at(base, offset):
            return builder.add(base, offset)

        def pointer(address, of):
            return builder.inttoptr(address, of.as_pointer())

        def spread(scalar):
            undefined = ir.Constant(FLOATS, ir.Undefined)
            first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
            return builder.shuffle_vector(first, undefined, ir.Constant(WORDS, [0] * LANES))

        tokens, outs, rows = [x], [out], [w]
        for _ in range(n_tokens - 1):
            tokens.append(at(tokens[-1], ldx))
            outs.append(at(outs[-1], ldo))
        for _ in range(n_rows - 1):
            rows.append(at(rows[-1], ldw))
        factors = [
            [spread(builder.load(pointer(at(token, const(4 * r)), F32), align=4)) for r in range(n_rows)]
            for token in tokens
        ]
        entry = builder.block
        loop = builder.append_basic_block("vectors")
        done = builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        v = builder.phi(I64)
        v.add_incoming(const(0), entry)
        place, line = builder.mul(v, const(LANES * n_bytes)), builder.shl(v, const(6))
        stored = ir.VectorType(element, LANES)
        wide = [_widened(builder, kind, builder.load(pointer(at(row, place), stored), align=n_bytes)) for row in rows]
        for t in range(n_tokens):
            where = pointer(at(outs[t], line), FLOATS)
            sums = builder.load(where, align=4)
            for r in range(n_rows):
                sums = builder.fadd(builder.fmul(factors[t][r], wide[r], _FLAGS), sums, _FLAGS)
            builder.store(sums, where, align=4)
        following = builder.add(v, const(1))
        v.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, n_vectors), loop, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, x, ldx, w, ldw, out, ldo, n_vectors):
        return types.void(*[types.int64] * 7), generate

    return tile
