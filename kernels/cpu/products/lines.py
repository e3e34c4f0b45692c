"""Lines of 32 numbers as two vectors of 16: what is done to the sums of tiles before they leave the cache.

LLVM takes narrower vectors by itself, and looks for overlaps that there are none of. Addresses are in bytes; a line may
be written where it was read.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from astra_mpi.kernels.cpu._simd import F32, I16, I32, I64, LANES, spread

#: numbers of a line
LINE = 32
_FLOATS, _INTEGERS, _SHORTS = (ir.VectorType(kind, LANES) for kind in (F32, I32, I16))


def _at(builder, address, half, kind, size=4):
    """Pointer to one half of a line of numbers of `size` bytes."""
    return builder.inttoptr(builder.add(address, ir.Constant(I64, half * LANES * size)), kind.as_pointer())


def _load(builder, address, half, kind=_FLOATS):
    return builder.load(_at(builder, address, half, kind), align=4)


def _store(builder, vector, address, half):
    size = 4 if vector.type.element != I16 else 2
    builder.store(vector, _at(builder, address, half, vector.type, size), align=size)


def _fma(builder, a, b, c):
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v16f32"), [a, b, c])


def _constant(kind, value):
    return ir.Constant(kind, [value] * LANES)


def _intrinsic(signature, write):
    """f(*addresses and numbers), of both halves of a line: write(builder, arguments, half)."""

    def generate(context, builder, signature, arguments):
        for half in range(2):
            write(builder, arguments, half)
        return context.get_dummy_value()

    return types.void(*signature), generate


@intrinsic
def scale_line(typingctx, out, counts, factor, offset):
    """out = (counts - offset) * factor; counts and offset are int32."""

    def write(builder, arguments, half):
        out, counts, factor, offset = arguments
        exact = builder.sub(_load(builder, counts, half, _INTEGERS), spread(builder, offset))
        _store(builder, builder.fmul(builder.sitofp(exact, _FLOATS), spread(builder, factor)), out, half)

    return _intrinsic((types.int64, types.int64, types.float32, types.int32), write)


@intrinsic
def add_scaled_line(typingctx, out, counts, factor, offset):
    """out += (counts - offset) * factor."""

    def write(builder, arguments, half):
        out, counts, factor, offset = arguments
        exact = builder.sub(_load(builder, counts, half, _INTEGERS), spread(builder, offset))
        scaled = builder.sitofp(exact, _FLOATS)
        _store(builder, _fma(builder, scaled, spread(builder, factor), _load(builder, out, half)), out, half)

    return _intrinsic((types.int64, types.int64, types.float32, types.int32), write)


@intrinsic
def affine_line(typingctx, out, sums, scale, bias):
    """out = sums * scale + bias."""

    def write(builder, arguments, half):
        out, *factors = arguments
        _store(builder, _fma(builder, *(_load(builder, at, half) for at in factors)), out, half)

    return _intrinsic([types.int64] * 4, write)


@intrinsic
def add_line(typingctx, out, line):
    """out += line."""

    def write(builder, arguments, half):
        out, line = arguments
        _store(builder, builder.fadd(_load(builder, out, half), _load(builder, line, half)), out, half)

    return _intrinsic([types.int64] * 2, write)


@intrinsic
def round_line(typingctx, out, line):
    """out = line as bfloat16; see `to_bfloat16`."""

    def write(builder, arguments, half):
        out, line = arguments
        bits = _load(builder, line, half, _INTEGERS)
        high = builder.lshr(bits, _constant(_INTEGERS, 16))
        odd = builder.and_(high, _constant(_INTEGERS, 1))
        rounded = builder.lshr(
            builder.add(bits, builder.add(odd, _constant(_INTEGERS, 0x7FFF))), _constant(_INTEGERS, 16)
        )
        size = builder.and_(bits, _constant(_INTEGERS, 0x7FFFFFFF))
        is_nan = builder.icmp_unsigned(">", size, _constant(_INTEGERS, 0x7F800000))
        narrow = builder.select(is_nan, builder.or_(high, _constant(_INTEGERS, 0x40)), rounded)
        _store(builder, builder.trunc(narrow, _SHORTS), out, half)

    return _intrinsic([types.int64] * 2, write)
