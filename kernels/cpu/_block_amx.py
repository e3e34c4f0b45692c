"""Products of many int8 rows with blocks of 32 weights, by AMX: 32 rows by two strips of 16 outputs at a time.

A tile has the exact sums of one block only, because each block has factors of its own. They are stored, and the vector
registers scale them and add them up, in the order of `_block_tiles`, to the bit.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from astra_mpi.kernels.cpu._block_tiles import Code, Loop, panel_bytes
from astra_mpi.kernels.cpu._simd import F32, I8, I32, I64, LANES

#: rows of a tile of sums, and of one of weights: words of a block
TILE_ROWS, _WORDS = 16, 8
#: bytes of a tile of sums, and of the four of a block
_TILE_BYTES, SUMS_BYTES = 1024, 4096
_ADDRESS = ir.PointerType(I8)
_FLOATS, _SUMS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)


def configuration() -> np.ndarray:
    """What `ldtilecfg` loads: tiles 0 .. 3 of sums, 4 and 5 of a block of 16 rows, 6 and 7 of a block of a strip."""
    config = np.zeros(64, np.uint8)
    config[0] = 1
    config[16:32].view(np.uint16)[:] = [64, 64, 64, 64, 4 * _WORDS, 4 * _WORDS, 64, 64]
    config[48:56] = [TILE_ROWS] * 6 + [_WORDS] * 2
    return config


def block_sums(has_least, n_tiles):
    """An intrinsic f(q, row_bytes, panel, sums, n_blocks) on addresses and bytes:

    sums (n_blocks, n_tiles, 2, 16, 16) int32 = n_tiles times 16 rows of int8 blocks @ two strips that `unpack_strips`
    unpacked, signed, block by block. The tiles must have the `configuration`.
    """
    per_block, before = panel_bytes(has_least), 256 if has_least else 128

    def generate(context, builder, signature, arguments):
        q, row_bytes, panel, sums, n_blocks = arguments
        code = Code(builder)

        def call(name, kinds, *given):
            kind = ir.FunctionType(ir.VoidType(), kinds)
            builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), given)

        def move(name, tile, address, stride):
            call(name, [I8, _ADDRESS, I64], ir.Constant(I8, tile), builder.inttoptr(address, _ADDRESS), stride)

        loop = Loop(builder, n_blocks, [q, code.at(panel, before), sums])
        inputs, numbers, to = loop.values
        for s in range(2):
            move("tileloadd64", 6 + s, code.at(numbers, 64 * s), ir.Constant(I64, 128))
        for t, rows in enumerate(code.rows(inputs, builder.shl(row_bytes, ir.Constant(I64, 4)), n_tiles)):
            move("tileloadd64", 4 + t, rows, row_bytes)
            for s in range(2):
                call("tilezero", [I8], ir.Constant(I8, 2 * t + s))
                call("tdpbssd", [I8] * 3, *(ir.Constant(I8, tile) for tile in (2 * t + s, 4 + t, 6 + s)))
        for tile in range(2 * n_tiles):
            move("tilestored64", tile, code.at(to, _TILE_BYTES * tile), ir.Constant(I64, 64))
        loop.close([code.at(inputs, 32), code.at(numbers, per_block), code.at(to, _TILE_BYTES * 2 * n_tiles)])
        return context.get_dummy_value()

    @intrinsic
    def sums_of(typingctx, q, row_bytes, panel, sums, n_blocks):
        return types.void(*[types.int64] * 5), generate

    return sums_of


def scale_sums(has_least):
    """An intrinsic f(sums, apart, scales, shares, line_bytes, panel, earlier, out, ldo, n_blocks) on addresses, bytes:

    out (16, 16) float32 = earlier (16, 16), or 0 if that is 0, + n_blocks tiles of sums, `apart` bytes from one to the
    next, times the factors of their blocks. scales, shares (n_blocks, ..) float32: those of 16 rows, and times sums of
    the rows' blocks, where blocks have a least weight. panel: at the strip's factors.
    """
    per_block = panel_bytes(has_least)

    def generate(context, builder, signature, arguments):
        sums, apart, scales, shares, line_bytes, panel, earlier, out, ldo, n_blocks = arguments
        code = Code(builder)
        loop = Loop(builder, n_blocks, [sums, scales, shares, panel, *_totals(code, earlier)])
        (tile, of_rows, of_shares, at), totals = loop.values[:4], loop.values[4:]
        factors = code.load(at, _FLOATS, 64)
        least = code.load(code.at(at, 128), _FLOATS, 64) if has_least else None
        new = []
        for i, total in enumerate(totals):
            product = builder.sitofp(code.load(code.at(tile, 64 * i), _SUMS, 64), _FLOATS)
            scale = code.spread(code.load(code.at(of_rows, 4 * i), F32))
            total = builder.call(code.fma, [product, builder.fmul(factors, scale), total])
            if has_least:
                share = code.spread(code.load(code.at(of_shares, 4 * i), F32))
                total = builder.call(code.fma, [least, share, total])
            new.append(total)
        steps = [builder.add(tile, apart), *(builder.add(line, line_bytes) for line in (of_rows, of_shares))]
        loop.close([*steps, code.at(at, per_block), *new])
        for total, row in zip(new, code.rows(out, ldo, TILE_ROWS), strict=True):
            code.store(total, row)
        return context.get_dummy_value()

    @intrinsic
    def scaled(typingctx, sums, apart, scales, shares, line_bytes, panel, earlier, out, ldo, n_blocks):
        return types.void(*[types.int64] * 10), generate

    return scaled


def _totals(code, earlier):
    """16 vectors at an address, or zeros."""
    builder, zero = code.builder, ir.Constant(_FLOATS, [0.0] * LANES)
    before, begun, ready = builder.block, *(builder.append_basic_block(name) for name in ("begun", "ready"))
    builder.cbranch(builder.icmp_signed("!=", earlier, ir.Constant(I64, 0)), begun, ready)
    builder.position_at_end(begun)
    loaded = [code.load(code.at(earlier, 64 * i), _FLOATS, 64) for i in range(TILE_ROWS)]
    builder.branch(ready)
    builder.position_at_end(ready)
    totals = [builder.phi(_FLOATS) for _ in loaded]
    for total, one in zip(totals, loaded, strict=True):
        total.add_incoming(zero, before)
        total.add_incoming(one, begun)
    return totals
