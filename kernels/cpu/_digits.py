"""Rows as integers of 16 bits, whole or in two digits, and what becomes of their products (kernels/integers.py)."""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import f32, i32
from astra_mpi.kernels.cpu._simd import F32, I8, I16, I32, I64, LANES, reduced, spread
from astra_mpi.kernels.cpu.products.layout import GROUP, ZERO
from astra_mpi.kernels.cpu.products.rows import largest
from astra_mpi.kernels.integers import LEAST, MOST

#: inputs of a line
LINE = 64
_LINES = GROUP // LINE
_FLOATS, _INTEGERS, _SIGNED, _SHORTS = (ir.VectorType(kind, LANES) for kind in (F32, I32, I8, I16))


@compiled(error_model="numpy")
def quantise_digits(numbers, step_bytes, high, low, steps, offsets):
    """The high and the low digits of numbers, float32, as lines at two addresses, each line step_bytes after the one
    before. Of every group its step, and ZERO times the sum of the integers and of their high digits. Numbers fill whole
    lines, by zeros."""
    for g in range(steps.size):
        group = numbers[GROUP * g : GROUP * (g + 1)]
        inverse, steps[g] = _scales(group)
        n = np.int64(group.size // LINE)
        total = _write_digits(group.ctypes.data, n, inverse, high, low, step_bytes)
        high, low = high + _LINES * step_bytes, low + _LINES * step_bytes
        offsets[g] = i32(i32(ZERO) * total)


@compiled(error_model="numpy")
def quantise_whole(numbers, out, steps):
    """The integers of numbers, float32, as int16 at the address `out`, those of a group before their high digits, and
    the step of every group."""
    for g in range(steps.size):
        group = numbers[GROUP * g : GROUP * (g + 1)]
        inverse, steps[g] = _scales(group)
        n, at = np.int64(group.size // LINE), out + 4 * GROUP * g
        _write_whole(group.ctypes.data, n, inverse, at, at + 2 * group.size, np.int64(2 * LINE))


@inner()
def _scales(group):
    """What a group's numbers are multiplied by, and the step of its integers, NaN where a number is not finite."""
    size = largest(group)
    finite = size < f32(np.inf)  # not NaN either
    inverse = f32(f32(MOST) / size) if finite and size >= LEAST else f32(0)
    return inverse, f32(size / f32(MOST)) if finite else f32(np.nan)


def _writes(store):
    """An intrinsic f(x, n, inverse, one, other, step_bytes): the sum of the integers of n > 0 lines of float32 at the
    address x, times inverse, and of their high digits.

    store(builder, q, upper): what goes to either address of 16 integers and their high digits. Lines are step_bytes
    apart.
    """

    def generate(context, builder, signature, arguments):
        x, n, inverse, one, other, step = arguments
        factor = spread(builder, inverse)
        rint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS]), "llvm.rint.v16f32")
        entry, loop, done = builder.block, builder.append_basic_block("line"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        i, place, total = builder.phi(I64), builder.phi(I64), builder.phi(_INTEGERS)
        for phi, first in ((i, ir.Constant(I64, 0)), (place, ir.Constant(I64, 0)), (total, _constant(0))):
            phi.add_incoming(first, entry)
        added = total
        for part in range(LINE // LANES):
            at = builder.add(x, builder.add(builder.shl(i, ir.Constant(I64, 8)), ir.Constant(I64, 4 * LANES * part)))
            scaled = builder.fmul(builder.load(builder.inttoptr(at, _FLOATS.as_pointer()), align=4), factor)
            q = builder.fptosi(builder.call(rint, [scaled]), _INTEGERS)
            upper = builder.ashr(builder.add(q, _constant(128)), _constant(8))
            for base, vector in zip((one, other), store(builder, q, upper), strict=True):
                size = LANES * vector.type.element.width // 8
                to = builder.add(builder.add(base, place), ir.Constant(I64, size * part))
                builder.store(vector, builder.inttoptr(to, vector.type.as_pointer()), align=1)
            added = builder.add(added, builder.add(q, upper))
        following = builder.add(i, ir.Constant(I64, 1))
        i.add_incoming(following, loop)
        place.add_incoming(builder.add(place, step), loop)
        total.add_incoming(added, loop)
        builder.cbranch(builder.icmp_signed("<", following, n), loop, done)
        builder.position_at_end(done)
        return reduced(builder, added, builder.add)

    @intrinsic
    def write(typingctx, x, n, inverse, one, other, step_bytes):
        return types.int32(types.int64, types.int64, types.float32, *[types.int64] * 3), generate

    return write


def _both_digits(builder, q, upper):
    lower = builder.sub(q, builder.shl(upper, _constant(8)))
    return builder.trunc(upper, _SIGNED), builder.trunc(lower, _SIGNED)


_write_digits = _writes(_both_digits)
_write_whole = _writes(lambda builder, *integers: [builder.trunc(vector, _SHORTS) for vector in integers])


@intrinsic
def add_digits(typingctx, out, upper, lower, rest, offset, step, scale):
    """32 float32 at `out` += exact * step * scale, each operation rounded once.

    exact: 256 times the sums at `upper`, and those at `lower` and at `rest`, less the offset. At all four addresses and
    at `scale` are 32 numbers, sums int32.
    """

    def generate(context, builder, signature, arguments):
        out, upper, lower, rest, offset, step, scale = arguments

        def exact(half):
            most, *others = (builder.load(_place(builder, at, _INTEGERS, half), align=4) for at in (upper, lower, rest))
            total = builder.shl(most, _constant(8))
            for sums in others:
                total = builder.add(total, sums)
            return builder.sub(total, spread(builder, offset))

        _add_scaled(builder, out, exact, step, scale)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4, types.int32, types.float32, types.int64), generate


@intrinsic
def add_whole(typingctx, out, sums, step, scale):
    """The same of exact sums that are at `sums`."""

    def generate(context, builder, signature, arguments):
        out, sums, step, scale = arguments

        def exact(half):
            return builder.load(_place(builder, sums, _INTEGERS, half), align=4)

        _add_scaled(builder, out, exact, step, scale)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64), generate


def _add_scaled(builder, out, exact, step, scale):
    for half in range(2):
        scaled = builder.fmul(builder.sitofp(exact(half), _FLOATS), spread(builder, step))
        scaled = builder.fmul(scaled, builder.load(_place(builder, scale, _FLOATS, half), align=4))
        place = _place(builder, out, _FLOATS, half)
        builder.store(builder.fadd(builder.load(place, align=4), scaled), place, align=4)


def _place(builder, address, kind, half):
    return builder.inttoptr(builder.add(address, ir.Constant(I64, 4 * LANES * half)), kind.as_pointer())


def _constant(number):
    return ir.Constant(_INTEGERS, [number] * LANES)
