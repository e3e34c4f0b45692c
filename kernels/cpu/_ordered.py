"""Products whose rows do not depend on each other: sums in order of k, each step one fused multiply-add.

BLAS takes other paths for other numbers of rows, whose results differ in the last bits. Here every number is the same
sequence of roundings in whatever tile it is computed, on every processor that has fused multiply-adds.
"""

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from astra_mpi.kernels._compile import compiled

Array = np.ndarray

_LANES = 16
#: rows and vectors of a tile, so that its sums fit the registers
_ROWS, _STRIPS = (8, 2) if llvmlite.binding.get_host_cpu_features().get("avx512f") else (4, 1)
_COLUMNS = _LANES * _STRIPS


def ordered_product(x: Array, weight: Array, out: Array) -> Array:
    """out (n, m) = x (n, k) @ weight (k, m), float32 and C-contiguous; see reference.ordered_product."""
    n, (k, m) = len(x), weight.shape
    missing = -m % _COLUMNS
    wide = np.pad(weight, ((0, 0), (0, missing))) if missing else weight
    full = np.empty((n, m + missing), np.float32) if missing else out
    if n and k:
        _product(x, wide, full)
    else:
        full[...] = 0
    if missing:
        out[...] = full[:, :m]
    return out


def _tile(n_rows: int):
    """An intrinsic f(a, lda, b, ldb, c, ldc, k) on addresses and strides in bytes: c (n_rows, _COLUMNS) = a @ b."""
    i32, i64, f32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
    line = ir.VectorType(f32, _LANES)

    def generate(context, builder, signature, arguments):
        a, lda, b, ldb, c, ldc, k = arguments
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(line, [line] * 3), f"llvm.fma.v{_LANES}f32"
        )

        def at(base, offset):
            return builder.add(base, offset if isinstance(offset, ir.Value) else ir.Constant(i64, offset))

        def pointer(address, of):
            return builder.inttoptr(address, of.as_pointer())

        rows, outs = [a], [c]
        for _ in range(n_rows - 1):
            rows.append(at(rows[-1], lda))
            outs.append(at(outs[-1], ldc))
        entry = builder.block
        loop, done = builder.append_basic_block("terms"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        q, below = builder.phi(i64), builder.phi(i64)
        sums = [[builder.phi(line) for _ in range(_STRIPS)] for _ in range(n_rows)]
        q.add_incoming(ir.Constant(i64, 0), entry)
        below.add_incoming(b, entry)
        zero, undefined = ir.Constant(line, [0.0] * _LANES), ir.Constant(line, ir.Undefined)
        of_all = ir.Constant(ir.VectorType(i32, _LANES), [0] * _LANES)
        factors = [builder.load(pointer(at(below, 4 * _LANES * s), line), align=4) for s in range(_STRIPS)]
        place = builder.shl(q, ir.Constant(i64, 2))
        for row, partial in zip(rows, sums, strict=True):
            scalar = builder.load(pointer(at(row, place), f32), align=4)
            spread = builder.shuffle_vector(
                builder.insert_element(undefined, scalar, ir.Constant(i32, 0)), undefined, of_all
            )
            for s in range(_STRIPS):
                partial[s].add_incoming(zero, entry)
                partial[s].add_incoming(builder.call(fused, [spread, factors[s], partial[s]]), loop)
        following = builder.add(q, ir.Constant(i64, 1))
        q.add_incoming(following, loop)
        below.add_incoming(builder.add(below, ldb), loop)
        builder.cbranch(builder.icmp_signed("<", following, k), loop, done)
        builder.position_at_end(done)
        for out, partial in zip(outs, sums, strict=True):
            for s in range(_STRIPS):
                builder.store(partial[s].incomings[1][0], pointer(at(out, 4 * _LANES * s), line), align=4)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, a, lda, b, ldb, c, ldc, k):
        return types.void(*[types.int64] * 7), generate

    return tile


_many, _one = _tile(_ROWS), _tile(1)


@compiled()
def _product(x, weight, out):
    """Tiles of _ROWS rows, then single ones; the columns of a tile stay in the cache for all rows."""
    n, k, m = x.shape[0], x.shape[1], weight.shape[1]
    lda, ldb = 4 * k, 4 * m
    for column in range(0, m, _COLUMNS):
        b = weight.ctypes.data + 4 * column
        whole = n - n % _ROWS
        for row in range(0, whole, _ROWS):
            _many(x.ctypes.data + lda * row, lda, b, ldb, out.ctypes.data + ldb * row + 4 * column, ldb, k)
        for row in range(whole, n):
            _one(x.ctypes.data + lda * row, lda, b, ldb, out.ctypes.data + ldb * row + 4 * column, ldb, k)
