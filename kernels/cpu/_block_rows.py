"""Rows as int8 blocks of 32, a block at a time in vector registers."""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from astra_mpi.kernels._compile import Native, compiled
from astra_mpi.kernels.aligned import address
from astra_mpi.kernels.blocks import LEAST, Rows
from astra_mpi.kernels.cpu import _team
from astra_mpi.kernels.cpu._memory import longs
from astra_mpi.kernels.cpu._rows import LEAST_SHARED
from astra_mpi.kernels.cpu._simd import F32, I8, I32, I64, LANES, reduced, spread

Array = np.ndarray
_FLOATS, _INTEGERS, _BYTES = (ir.VectorType(of, LANES) for of in (F32, I32, I8))
_INFINITE = 0x7F800000
_LEAST_BITS = int(np.float32(LEAST).view(np.int32))


@intrinsic
def _quantise(typingctx, x, q, scales, sums, n_blocks):
    """n_blocks blocks of float32 at x as int8 at q, float32 scales and int32 sums; addresses. At least one block."""

    def generate(context, builder, signature, arguments):
        x, q, scales, sums, n_blocks = arguments
        loop, done = builder.append_basic_block("block"), builder.append_basic_block("done")
        entry = builder.block
        builder.branch(loop)
        builder.position_at_end(loop)
        i = builder.phi(I64)
        i.add_incoming(ir.Constant(I64, 0), entry)
        _block(
            builder,
            *(
                builder.add(at, builder.mul(i, ir.Constant(I64, step)))
                for at, step in ((x, 128), (q, 32), (scales, 4), (sums, 4))
            ),
        )
        following = builder.add(i, ir.Constant(I64, 1))
        i.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, n_blocks), loop, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


def _block(builder, x, q, scale, total):
    def pointer(address, of, offset=0):
        return builder.inttoptr(builder.add(address, ir.Constant(I64, offset)), of.as_pointer())

    def larger(a, b):
        return builder.select(builder.icmp_signed(">", a, b), a, b)

    floats = [builder.load(pointer(x, _FLOATS, 64 * half), align=4) for half in range(2)]
    positive = ir.Constant(_INTEGERS, [0x7FFFFFFF] * LANES)
    # magnitudes sort as their bits do
    magnitudes = [builder.and_(builder.bitcast(half, _INTEGERS), positive) for half in floats]
    bits = reduced(builder, larger(*magnitudes), larger)
    finite = builder.icmp_signed("<", bits, ir.Constant(I32, _INFINITE))
    some = builder.and_(finite, builder.icmp_signed(">=", bits, ir.Constant(I32, _LEAST_BITS)))
    largest, most = builder.bitcast(bits, F32), ir.Constant(F32, 127.0)
    factor = spread(builder, builder.select(some, builder.fdiv(most, largest), ir.Constant(F32, 0.0)))
    rint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS]), "llvm.rint.v16f32")
    numbers = []
    for half in range(2):
        scaled = builder.select(
            spread(builder, finite), builder.fmul(floats[half], factor), ir.Constant(_FLOATS, [0.0] * LANES)
        )
        numbers.append(builder.fptosi(builder.call(rint, [scaled]), _INTEGERS))
        builder.store(builder.trunc(numbers[half], _BYTES), pointer(q, _BYTES, 16 * half), align=1)
    stored = builder.select(finite, builder.fdiv(largest, most), ir.Constant(F32, float("nan")))
    builder.store(stored, pointer(scale, F32), align=4)
    builder.store(reduced(builder, builder.add(*numbers), builder.add), pointer(total, I32), align=4)


@compiled(error_model="numpy")
def quantise_into(x, q, scales, sums):
    """`quantise_rows` of x (m, k) into q, scales, sums; all are C-contiguous."""
    if scales.size:
        addresses = x.ctypes.data, q.ctypes.data, scales.ctypes.data, sums.ctypes.data
        _quantise(*addresses, scales.size)  # type: ignore[call-arg]


def quantise_rows(x: Array) -> Rows:
    """x (m, k) float32 -> int8 blocks (m, k), float32 scales (m, k / 32) and int32 sums; see reference."""
    m, k = x.shape
    rows = np.empty((m, k), np.int8), np.empty((m, k // 32), np.float32), np.empty((m, k // 32), np.int32)
    x = np.ascontiguousarray(x, np.float32)
    places = [(address(array), array.strides[0]) for array in (x, *rows)]

    def share(index: int, count: int) -> tuple[int, ...]:
        first, last = m * index // count, m * (index + 1) // count
        return *(at + first * step for at, step in places), (last - first) * (k // 32)

    _team.run_native(_share, share, alone=x.size < LEAST_SHARED)
    return rows


@Native
def _share(at, index, count):
    words = longs(at, 5)
    if words[4] > 0:
        _quantise(words[0], words[1], words[2], words[3], words[4])  # type: ignore[call-arg]
    return 1
