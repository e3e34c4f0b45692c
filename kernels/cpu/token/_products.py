"""Products of a few rows with a matrix of any format, a thread's share of its columns.

Bound by memory: a matrix is read once for up to four rows, row after row as it lies there.
"""

import numpy as np

from astra_mpi.kernels.blocks import BLOCK_KINDS
from astra_mpi.kernels.cpu._block_tiles import block_tile, has_tiles
from astra_mpi.kernels.cpu._blocks import quantise_into
from astra_mpi.kernels.cpu._features import has
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import FASTMATH, f32
from astra_mpi.kernels.cpu._memory import (
    byte_rows,
    float_rows,
    floats,
    integer_rows,
    shorts,
    signed_bytes,
)
from astra_mpi.kernels.cpu._simd import dot_tile
from astra_mpi.kernels.cpu.products.layout import GROUP_WORDS
from astra_mpi.kernels.cpu.token._block_strip import block_strip
from astra_mpi.kernels.cpu.token._dots import dots
from astra_mpi.kernels.cpu.token._narrow_rows import (
    add_counts,
    n_groups,
    scale_floats,
    scale_rows,
    to_bfloat16,
    to_int8,
)
from astra_mpi.kernels.cpu.token._vectors import copy, fill, rows_tile, strip_tile
from astra_mpi.kernels.cpu.token.tables import (
    ADDRESS,
    BFLOAT16,
    COLUMN,
    FACTORS,
    FLOAT16,
    FLOAT32,
    FLOAT32_ROWS,
    FORMAT,
    N_IN,
    N_OUT,
    NARROWED,
    NONE,
    PACKED_BFLOAT16,
    PACKED_INT8,
    Q4_0,
    Q8_0,
    ROW_SUMS,
    SCALE,
    STRIDE,
    TILE,
)

#: columns that threads share out
UNIT = 32
#: strips of 16 columns read at a time
STRIPS = 4


@inner()
def share(n, index, count):
    """First and last of n columns that thread `index` of `count` computes."""
    units = (n + UNIT - 1) // UNIT
    return min(n, units * index // count * UNIT), min(n, units * (index + 1) // count * UNIT)


def _adder(kind, n_bytes, number):
    """`add_rows` of one kind."""
    one, two, four = rows_tile(kind, 1, 1), rows_tile(kind, 1, 2), rows_tile(kind, 4, 4)

    @inner(fastmath=FASTMATH)
    def add(x, ldx, n_rows, w, ldw, m, n, out, ldo):
        vectors = n // 16
        fours, whole = n_rows - n_rows % 4 if vectors else 0, m - m % 4
        for i in range(0, whole if fours else 0, 4):
            for t in range(0, fours, 4):
                four(x + t * ldx + 4 * i, ldx, w + i * ldw, ldw, out + t * ldo, ldo, vectors)
        for i in range(m if vectors else 0):
            row, factors, t = w + i * ldw, x + 4 * i, fours if i < whole else 0
            while n_rows - t >= 2:
                two(factors + t * ldx, ldx, row, ldw, out + t * ldo, ldo, vectors)
                t += 2
            if n_rows - t == 1:
                one(factors + t * ldx, ldx, row, ldw, out + t * ldo, ldo, vectors)
        rest = n - 16 * vectors
        if rest:
            for t in range(n_rows):
                row, factors = floats(out + t * ldo + 64 * vectors, rest), floats(x + t * ldx, m)
                for i in range(m):
                    for j in range(rest):
                        row[j] += factors[i] * number(w + i * ldw + (16 * vectors + j) * n_bytes)

    return add


@inner()
def _float32_at(address):
    return floats(address, 1)[0]


@inner()
def _bfloat16_at(address):
    return np.uint32(np.uint32(shorts(address, 1)[0]) << np.uint32(16)).view(np.float32)


@inner()
def _float16_at(address):
    bits = np.uint32(shorts(address, 1)[0])
    magnitude = np.uint32(np.uint32(bits & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32) * f32(2.0**112)
    return -magnitude if bits & np.uint32(0x8000) else magnitude


@inner()
def _int8_at(address):
    return f32(signed_bytes(address, 1)[0])


add_float32 = _adder("float32", 4, _float32_at)
add_bfloat16 = _adder("bfloat16", 2, _bfloat16_at)
add_float16 = _adder("float16", 2, _float16_at)
add_int8 = _adder("int8", 1, _int8_at)

#: whether this processor has the instructions of packed products
HAS_BFLOAT16, HAS_INT8 = has("bfloat16", "avx512_bf16"), has("int8", "vnni")


def _dots(kind, available):
    """f(a, lda, n_rows, b, ldb, n_strips, n_words, c): up to 4 rows of words times up to 4 strips -> c (n_rows, 64)."""
    if not available:

        @inner()
        def none(a, lda, n_rows, b, ldb, n_strips, n_words, c):
            raise NotImplementedError("this processor has no such product")

        return none
    one4, two4, three4, four4 = (dot_tile(kind, r, STRIPS) for r in (1, 2, 3, 4))
    one1, line = dot_tile(kind, 1, 1), strip_tile(kind, 4)
    exact = kind == "int8"  # other sums depend on their order, which shall be the same for any number of rows

    @inner()
    def dots(a, lda, n_rows, b, ldb, n_strips, n_words, c):
        if exact and n_rows == 1 and n_words % 4 == 0:  # as they lie in memory
            for s in range(n_strips):
                line(a, b + s * ldb, c + 64 * s, n_words)
        elif n_strips < STRIPS:
            for r in range(n_rows):
                for s in range(n_strips):
                    one1(a + r * lda, lda, b + s * ldb, ldb, c + 256 * r + 64 * s, 256, n_words, 1)
        elif n_rows == 4:
            four4(a, lda, b, ldb, c, 256, n_words, 1)
        elif n_rows == 3:
            three4(a, lda, b, ldb, c, 256, n_words, 1)
        elif n_rows == 2:
            two4(a, lda, b, ldb, c, 256, n_words, 1)
        else:
            one4(a, lda, b, ldb, c, 256, n_words, 1)

    return dots


dots_bfloat16 = _dots("bfloat16", HAS_BFLOAT16)
dots_int8 = _dots("int8", HAS_INT8)


(_q8, _q8_four), (_q40, _q40_four), (_q41, _q41_four) = (
    (block_strip(kind), block_tile(kind, 4)) for kind in BLOCK_KINDS
)
HAS_BLOCKS = has_tiles()


@inner()
def _blocks(kind, x, n_rows, m, weights, strip, first, last, out, ldo, own):
    """Columns first .. last of a product with blocks; x (n_rows, m) is dense, `strip` bytes of a strip."""
    if not HAS_BLOCKS:
        return
    n_blocks = m // 32
    q, scales, sums = own[NARROWED], own[FACTORS], own[ROW_SUMS]
    rows = float_rows(x, n_rows, m)
    quantise_into(
        rows, byte_rows(q, n_rows, m), float_rows(scales, n_rows, n_blocks), integer_rows(sums, n_rows, n_blocks)
    )
    fours = n_rows - n_rows % 4
    for j in range(first, last, 32):
        b, width = weights + j // 16 * strip, min(32, last - j)
        for t in range(0, fours, 4):
            a, factors, totals = q + t * m, scales + 4 * t * n_blocks, sums + 4 * t * n_blocks
            if kind == Q8_0:
                _q8_four(a, factors, totals, b, strip, own[TILE], 128, n_blocks)
            elif kind == Q4_0:
                _q40_four(a, factors, totals, b, strip, own[TILE], 128, n_blocks)
            else:
                _q41_four(a, factors, totals, b, strip, own[TILE], 128, n_blocks)
            for r in range(4):
                copy(own[TILE] + 128 * r, out + (t + r) * ldo + 4 * j, width)
        for t in range(fours, n_rows):
            a, factors, totals = q + t * m, scales + 4 * t * n_blocks, sums + 4 * t * n_blocks
            for s in range(2):
                if kind == Q8_0:
                    _q8(a, factors, totals, b + s * strip, own[TILE] + 64 * s, n_blocks)
                elif kind == Q4_0:
                    _q40(a, factors, totals, b + s * strip, own[TILE] + 64 * s, n_blocks)
                else:
                    _q41(a, factors, totals, b + s * strip, own[TILE] + 64 * s, n_blocks)
            copy(own[TILE], out + t * ldo + 4 * j, width)


@inner(fastmath=FASTMATH)
def product(matrix, x, ldx, n_rows, out, ldo, own, index, count):
    """This thread's columns of out (n_rows, n) = x (n_rows, m) @ matrix; strides in bytes, `own` its buffers."""
    kind, m, ldw = matrix[FORMAT], matrix[N_IN], matrix[STRIDE]
    first, last = share(matrix[N_OUT], index, count)
    if kind == NONE or first >= last:
        return
    out += 4 * matrix[COLUMN]
    n, at = last - first, out + 4 * first
    if kind == PACKED_BFLOAT16:
        n_words = ldw // 64
        to_bfloat16(x, ldx, n_rows, m, own[NARROWED], 4 * n_words)
        for j in range(first, last, 16 * STRIPS):
            part = min(16 * STRIPS, last - j)
            for t in range(0, n_rows, 4):
                rows = min(4, n_rows - t)
                a, b = own[NARROWED] + 4 * t * n_words, matrix[ADDRESS] + j // 16 * ldw
                dots_bfloat16(a, 4 * n_words, rows, b, ldw, (part + 15) // 16, n_words, own[TILE])
                scale_floats(own[TILE], rows, part, matrix[SCALE] + 4 * j, out + t * ldo + 4 * j, ldo)
        return
    if kind == FLOAT32_ROWS:
        dots(x, ldx, n_rows, matrix[ADDRESS] + ldw * first, ldw, n, m, at, ldo)
        return
    if kind >= Q8_0:
        _blocks(kind, x, n_rows, m, matrix[ADDRESS], ldw, first, last, out, ldo, own)
        return
    if kind == PACKED_INT8:
        n_words = ldw // 64
        to_int8(x, ldx, n_rows, m, own[NARROWED], 4 * n_words, own)
        step = 16 if n_rows == 1 else 16 * STRIPS  # one row reads weights as they lie in memory
        for j in range(first, last, step):
            part = min(step, last - j)
            for t in range(0, n_rows, 4):
                rows, target = min(4, n_rows - t), out + t * ldo + 4 * j
                a, b = own[NARROWED] + 4 * t * n_words, matrix[ADDRESS] + j // 16 * ldw
                for w in range(0, n_words, GROUP_WORDS):
                    words = min(GROUP_WORDS, n_words - w)
                    dots_int8(a + 4 * w, 4 * n_words, rows, b + 64 * w, ldw, (part + 15) // 16, words, own[TILE])
                    add_counts(own, t, rows, n_groups(n_words), w // GROUP_WORDS, part, target, ldo)
                scale_rows(target, rows, part, matrix[SCALE] + 4 * j, ldo)
        return
    for t in range(n_rows):
        fill(at + t * ldo, n, f32(0))
    if kind == FLOAT32:
        add_float32(x, ldx, n_rows, matrix[ADDRESS] + 4 * first, ldw, m, n, at, ldo)
    elif kind == BFLOAT16:
        add_bfloat16(x, ldx, n_rows, matrix[ADDRESS] + 2 * first, ldw, m, n, at, ldo)
    elif kind == FLOAT16:
        add_float16(x, ldx, n_rows, matrix[ADDRESS] + 2 * first, ldw, m, n, at, ldo)
    else:
        add_int8(x, ldx, n_rows, matrix[ADDRESS] + first, ldw, m, n, at, ldo)
    if matrix[SCALE]:
        scale = floats(matrix[SCALE] + 4 * first, n)
        for t in range(n_rows):
            row = floats(at + t * ldo, n)
            for j in range(n):
                row[j] *= scale[j]
