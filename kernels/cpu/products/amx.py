"""Products of a panel of rows with strips, by AMX: 32 rows by two strips at a time, in eight tiles.

Tiles 0 .. 3 are sums, 4 and 5 sixteen rows each, 6 and 7 sixteen words of two strips. The names are those of LLVM.
Rows may lie as rows do, or in tiles: sixteen rows of sixteen words, one after another, as a processor reads best.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._memory import ask_line

_I8, _I64 = ir.IntType(8), ir.IntType(64)
_ADDRESS = ir.PointerType(_I8)
#: rows that a tile may compute beyond those asked for
SPARE_ROWS = 31
#: words of a tile's row
_WORDS = 16


def configuration() -> np.ndarray:
    """What `ldtilecfg` loads: palette 1, eight tiles of 16 rows of 64 bytes."""
    config = np.zeros(64, np.uint8)
    config[0] = 1
    config[16:32].view(np.uint16)[:] = 64
    config[48:56] = 16
    return config


def _call(builder, name, kinds, arguments):
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name)
    builder.call(function, arguments)


def _moves(name, tile):
    """An intrinsic f(address, bytes between rows) that loads or stores a tile."""

    @intrinsic
    def move(typingctx, address, stride):
        def generate(context, builder, signature, arguments):
            where = builder.inttoptr(arguments[0], _ADDRESS)
            _call(builder, name, [_I8, _ADDRESS, _I64], [ir.Constant(_I8, tile), where, arguments[1]])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return move


def _dots(pairs):
    """An intrinsic f(sums) that adds products of tiles; `sums` only tells the type: float32 or int32."""

    @intrinsic
    def dots(typingctx, sums):
        name = "llvm.x86.tdpbf16ps" if sums.dtype == types.float32 else "llvm.x86.tdpbsud"

        def generate(context, builder, signature, arguments):
            for pair in pairs:
                _call(builder, name, [_I8] * 3, [ir.Constant(_I8, tile) for tile in pair])
            return context.get_dummy_value()

        return types.void(sums), generate

    return dots


@intrinsic
def configure(typingctx, address):
    def generate(context, builder, signature, arguments):
        _call(builder, "llvm.x86.ldtilecfg", [_ADDRESS], [builder.inttoptr(arguments[0], _ADDRESS)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def clear(typingctx):
    """Sums of zero."""

    def generate(context, builder, signature, arguments):
        for tile in range(4):
            _call(builder, "llvm.x86.tilezero", [_I8], [ir.Constant(_I8, tile)])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def release(typingctx):
    def generate(context, builder, signature, arguments):
        _call(builder, "llvm.x86.tilerelease", [], [])
        return context.get_dummy_value()

    return types.void(), generate


_LOAD, _STORE = "llvm.x86.tileloadd64", "llvm.x86.tilestored64"
load_0, load_1, load_2, load_3 = (_moves(_LOAD, tile) for tile in range(4))
load_4, load_5, load_6, load_7 = (_moves(_LOAD, tile) for tile in range(4, 8))
store_0, store_1, store_2, store_3 = (_moves(_STORE, tile) for tile in range(4))
dot_4 = _dots(((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7)))
dot_2 = _dots(((0, 4, 6), (1, 4, 7)))


@compiled()
def sweep(tiles, rows, n_rows, b, ldb, n_strips, sums, column, n_words, begin):
    """`avx512.sweep` with tiles (`configuration`), in which n_words is a multiple of 16; it may compute
    SPARE_ROWS rows beyond n_rows.

    rows: where they begin, and bytes from row to row of a tile, from tile to tile, and from sixteen rows to the next.
    """
    ldc = 4 * sums.shape[1]
    configure(tiles.ctypes.data)  # type: ignore[call-arg]
    for s in range(0, n_strips, 2):
        for i in range(0, n_rows, 32):
            c = sums.ctypes.data + i * ldc + 4 * column + 64 * s
            block(sums, rows, i, n_rows - i > 16, b + s * ldb, ldb, n_words, begin, c, ldc)
    release()


@inner()
def from_word(rows, w):
    """Where the same rows lie from word w on, a multiple of 16."""
    return rows[0] + w // _WORDS * rows[2], rows[1], rows[2], rows[3]


@inner()
def block(sums, rows, i, both, strip, ldb, n_words, begin, c, ldc):
    """`block_asking` for nothing."""
    block_asking(sums, rows, i, both, strip, ldb, n_words, begin, c, ldc, strip, 0)


@inner()
def block_asking(sums, rows, i, both, strip, ldb, n_words, begin, c, ldc, ahead, n_ahead):
    """32 rows from row i on, or sixteen, and two strips: c = (begin ? 0 : c) + their products.

    c: address of sums of the type that `sums` has, ldc bytes from row to row. ahead: where lines of two strips lie that
    are multiplied later, ldb bytes apart; of each, n_ahead lines are asked for every sixteen words.
    """
    a, lda, tile, sixteen = rows
    at = a + i // 16 * sixteen
    if begin:
        clear()  # type: ignore[call-arg]
    else:
        load_0(c, ldc)
        load_1(c + 64, ldc)
        if both:
            load_2(c + 16 * ldc, ldc)
            load_3(c + 16 * ldc + 64, ldc)
    for _ in range(n_words // _WORDS):
        load_4(at, lda)
        load_6(strip, 64)
        load_7(strip + ldb, 64)
        if both:
            load_5(at + sixteen, lda)
            dot_4(sums)
        else:
            dot_2(sums)
        for _ in range(n_ahead):
            ask_line(ahead)
            ask_line(ahead + ldb)
            ahead += 64
        at += tile
        strip += 1024
    store_0(c, ldc)
    store_1(c + 64, ldc)
    if both:
        store_2(c + 16 * ldc, ldc)
        store_3(c + 16 * ldc + 64, ldc)
