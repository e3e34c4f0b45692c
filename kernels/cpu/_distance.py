"""The exact distance of two vectors, which decides where float32 cannot tell which of two entries is nearer."""

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._simd import F32, I64, LANES, reduced

_FLOATS, _DOUBLES = ir.VectorType(F32, LANES), ir.VectorType(ir.DoubleType(), LANES)


@inner()
def exact_distance(vector, entry):
    """Squared distance in float64 of float32 vectors whose numbers lie side by side, by sums in one order of their own:
    the same wherever it is compiled."""
    whole, total = vector.size // LANES * LANES, 0.0
    if whole:
        total = _of_lanes(np.int64(vector.ctypes.data), np.int64(entry.ctypes.data), np.int64(whole))  # type: ignore[call-arg]
    for w in range(whole, vector.size):
        rest = np.float64(vector[w]) - entry[w]
        total += rest * rest
    return total


@intrinsic
def _of_lanes(typingctx, a, b, n):
    """Of n float32 each at two addresses, n a multiple of LANES, at least once: sums of lanes, then of these by halves.
    No multiplication is fused with an addition."""

    def generate(context, builder, signature, arguments):
        a, b, n = arguments
        entry, loop, done = builder.block, builder.append_basic_block("lanes"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        i, total = builder.phi(I64), builder.phi(_DOUBLES)
        i.add_incoming(ir.Constant(I64, 0), entry)
        total.add_incoming(ir.Constant(_DOUBLES, [0.0] * LANES), entry)
        place = builder.shl(i, ir.Constant(I64, 2))
        one, other = (
            builder.fpext(
                builder.load(builder.inttoptr(builder.add(at, place), _FLOATS.as_pointer()), align=4), _DOUBLES
            )
            for at in (a, b)
        )
        difference = builder.fsub(one, other)
        added = builder.fadd(total, builder.fmul(difference, difference))
        following = builder.add(i, ir.Constant(I64, LANES))
        i.add_incoming(following, loop)
        total.add_incoming(added, loop)
        builder.cbranch(builder.icmp_signed("<", following, n), loop, done)
        builder.position_at_end(done)
        return reduced(builder, added, builder.fadd)

    return types.float64(*[types.int64] * 3), generate
