"""Products of a few rows with a matrix of any format, a thread's share of its columns.

Bound by memory: a matrix is read once for up to four rows, row after row as it lies there.
"""

import llvmlite.binding
import numpy as np
from numba import njit

from astra_mpi.kernels.cpu._math import FASTMATH, f32, from_ordered_bits
from astra_mpi.kernels.cpu._simd import dot_tile
from astra_mpi.kernels.cpu.token._vectors import bits, fill, floats, integers, rows_tile, shorts, signed_bytes
from astra_mpi.kernels.cpu.token.tables import (
    ADDRESS,
    BFLOAT16,
    COLUMN,
    FACTORS,
    FLOAT16,
    FLOAT32,
    FORMAT,
    INT8,
    N_IN,
    N_OUT,
    NARROWED,
    NONE,
    PACKED_BFLOAT16,
    PACKED_INT8,
    ROW_SUMS,
    SCALE,
    STRIDE,
    TILE,
)

#: columns that threads share out
UNIT = 32
#: strips of 16 columns read at a time
STRIPS = 4


@njit
def share(n, index, count):
    """First and last of n columns that thread `index` of `count` computes."""
    units = (n + UNIT - 1) // UNIT
    return min(n, units * index // count * UNIT), min(n, units * (index + 1) // count * UNIT)


@njit
def product(matrix, x, ldx, n_rows, out, ldo, own, index, count):
    """This thread's columns of out (n_rows, n) = x (n_rows, m) @ matrix; strides in bytes, `own` its buffers."""
    kind = matrix[FORMAT]
    if kind == NONE:
        return
    first, last = share(matrix[N_OUT], index, count)
    if first >= last:
        return
    out += 4 * matrix[COLUMN]
    if kind in (PACKED_BFLOAT16, PACKED_INT8):
        packed(kind, matrix, x, ldx, n_rows, out, ldo, own, first, last)
        return
    n, m = last - first, matrix[N_IN]
    for t in range(n_rows):
        fill(out + t * ldo + 4 * first, n, f32(0))
    width = 4 if kind == FLOAT32 else (1 if kind == INT8 else 2)
    add_rows(kind, x, ldx, n_rows, matrix[ADDRESS] + width * first, matrix[STRIDE], m, n, out + 4 * first, ldo)
    if matrix[SCALE]:
        scale = floats(matrix[SCALE] + 4 * first, n)
        for t in range(n_rows):
            row = floats(out + t * ldo + 4 * first, n)
            for j in range(n):
                row[j] *= scale[j]


@njit
def add_rows(kind, x, ldx, n_rows, w, ldw, m, n, out, ldo):
    """out (n_rows, n) += x (n_rows, m) @ w (m, n) of stored numbers, row by row."""
    if kind == FLOAT32:
        _add_float32(x, ldx, n_rows, w, ldw, m, n, out, ldo)
    elif kind == BFLOAT16:
        _add_bfloat16(x, ldx, n_rows, w, ldw, m, n, out, ldo)
    elif kind == FLOAT16:
        _add_float16(x, ldx, n_rows, w, ldw, m, n, out, ldo)
    else:
        _add_int8(x, ldx, n_rows, w, ldw, m, n, out, ldo)


def _adder(kind, n_bytes, number):
    """`add_rows` of one kind."""
    one, two, four = rows_tile(kind, 1, 1), rows_tile(kind, 1, 2), rows_tile(kind, 4, 4)

    @njit(fastmath=FASTMATH)
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


@njit
def _float32_at(address):
    return floats(address, 1)[0]


@njit
def _bfloat16_at(address):
    return np.uint32(np.uint32(shorts(address, 1)[0]) << np.uint32(16)).view(np.float32)


@njit
def _float16_at(address):
    bits = np.uint32(shorts(address, 1)[0])
    magnitude = np.uint32(np.uint32(bits & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32) * f32(2.0**112)
    return -magnitude if bits & np.uint32(0x8000) else magnitude


@njit
def _int8_at(address):
    return f32(signed_bytes(address, 1)[0])


_add_float32 = _adder("float32", 4, _float32_at)
_add_bfloat16 = _adder("bfloat16", 2, _bfloat16_at)
_add_float16 = _adder("float16", 2, _float16_at)
_add_int8 = _adder("int8", 1, _int8_at)

_FEATURES = llvmlite.binding.get_host_cpu_features()
#: whether this processor has the instructions of packed products
HAS_BFLOAT16, HAS_INT8 = bool(_FEATURES.get("avx512bf16")), bool(_FEATURES.get("avx512vnni"))


def _dots(kind, available):
    """f(a, lda, n_rows, b, ldb, n_strips, n_words, c): up to 4 rows of words times up to 4 strips -> c (n_rows, 64)."""
    if not available:

        @njit
        def none(a, lda, n_rows, b, ldb, n_strips, n_words, c):
            raise NotImplementedError("this processor has no such product")

        return none
    one4, two4, three4, four4 = (dot_tile(kind, r, STRIPS) for r in (1, 2, 3, 4))
    one1 = dot_tile(kind, 1, 1)

    @njit
    def dots(a, lda, n_rows, b, ldb, n_strips, n_words, c):
        if n_strips < STRIPS:
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


@njit
def packed(kind, matrix, x, ldx, n_rows, out, ldo, own, first, last):
    """Columns first .. last of a product with a packed matrix; first is a multiple of 32."""
    m, ldb = matrix[N_IN], matrix[STRIDE]
    n_words = ldb // 64
    lda, a = 4 * n_words, own[NARROWED]
    if kind == PACKED_BFLOAT16:
        to_bfloat16(x, ldx, n_rows, m, a, lda)
    else:
        to_int8(x, ldx, n_rows, m, a, lda, own)
    factors, sums = floats(own[FACTORS], n_rows), floats(own[ROW_SUMS], n_rows)
    c = own[TILE]
    for j in range(first, last, 16 * STRIPS):
        n = min(16 * STRIPS, last - j)
        b, strips = matrix[ADDRESS] + j // 16 * ldb, (n + 15) // 16
        for t in range(0, n_rows, 4):
            rows = min(4, n_rows - t)
            scale = floats(matrix[SCALE] + 4 * j, n)
            if kind == PACKED_BFLOAT16:
                dots_bfloat16(a + t * lda, lda, rows, b, ldb, strips, n_words, c)
                for r in range(rows):
                    row, summed = floats(out + (t + r) * ldo + 4 * j, n), floats(c + 256 * r, n)
                    for e in range(n):
                        row[e] = summed[e] * scale[e]
                continue
            dots_int8(a + t * lda, lda, rows, b, ldb, strips, n_words, c)
            for r in range(rows):
                row, counts = floats(out + (t + r) * ldo + 4 * j, n), integers(c + 256 * r, n)
                factor, offset = factors[t + r], np.int32(128 * sums[t + r])
                for e in range(n):
                    row[e] = f32(counts[e] - offset) * (factor * scale[e])


@njit
def to_bfloat16(x, ldx, n_rows, m, a, lda):
    """x (n_rows, m) float32 -> a (n_rows, lda / 2) bfloat16, rounded to nearest even, zeros behind."""
    half, one = np.uint32(0x7FFF), np.uint32(1)
    for t in range(n_rows):
        row, narrow = bits(x + t * ldx, m), shorts(a + t * lda, lda // 2)
        for i in range(m):
            narrow[i] = np.uint16((row[i] + half + ((row[i] >> np.uint32(16)) & one)) >> np.uint32(16))
        for i in range(m, lda // 2):
            narrow[i] = np.uint16(0)


@njit
def to_int8(x, ldx, n_rows, m, a, lda, own):
    """x (n_rows, m) float32 -> a (n_rows, lda) int8, zeros behind; factors and sums of its rows."""
    factors, sums = floats(own[FACTORS], n_rows), floats(own[ROW_SUMS], n_rows)
    for t in range(n_rows):
        factors[t], sums[t] = quantised(x + t * ldx, m, a + t * lda, lda)


@njit(fastmath=FASTMATH)
def quantised(x, m, a, n):
    """x (m,) float32 -> a (n,) int8, zeros behind; its factor, and the sum of the integers."""
    row, numbers, narrow = integers(x, m), floats(x, m), signed_bytes(a, n)
    highest = np.int32(0)
    for i in range(m):  # magnitudes sort as their bits do
        highest = np.int32(max(highest, np.int32(row[i] & np.int32(0x7FFFFFFF))))
    largest = from_ordered_bits(highest)
    factor = largest / f32(127) if largest > f32(0) else f32(1)
    inverse, total = f32(1) / factor, np.int32(0)
    for i in range(m):
        number = np.int32(np.floor(numbers[i] * inverse + f32(0.5)))
        narrow[i] = np.int8(number)
        total = np.int32(total + number)
    for i in range(m, n):
        narrow[i] = np.int8(0)
    return factor, f32(total)
