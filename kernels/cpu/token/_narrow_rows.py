"""Rows in the narrow types of packed products, and sums of tiles with the factors that belong to them."""

import numpy as np

from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import FASTMATH, f32, from_ordered_bits
from astra_mpi.kernels.cpu._memory import bits, floats, integers, shorts, signed_bytes
from astra_mpi.kernels.cpu.products.layout import GROUP, GROUP_WORDS
from astra_mpi.kernels.cpu.token.tables import FACTORS, ROW_SUMS, TILE


@inner(fastmath=FASTMATH)
def scale_floats(tile, n_rows, n, scale, out, ldo):
    """Sums of a tile (n_rows, n) float32 -> out, times factors of columns; addresses."""
    factors = floats(scale, n)
    for r in range(n_rows):
        row, sums = floats(out + r * ldo, n), floats(tile + 256 * r, n)
        for e in range(n):
            row[e] = sums[e] * factors[e]


@inner(fastmath=FASTMATH)
def scale_counts(own, first, n_rows, n, scale, out, ldo):
    """Sums of a tile (n_rows, n) int32 with unsigned weights -> out, of rows `first` and after it."""
    factors, row_factors, row_sums = floats(scale, n), floats(own[FACTORS], first + 4), floats(own[ROW_SUMS], first + 4)
    for r in range(n_rows):
        row, counts = floats(out + r * ldo, n), integers(own[TILE] + 256 * r, n)
        factor, offset = row_factors[first + r], np.int32(128 * row_sums[first + r])
        for e in range(n):
            row[e] = f32(counts[e] - offset) * (factor * factors[e])


@inner()
def n_groups(n_words):
    """Of an int8 row's factors."""
    return (n_words + GROUP_WORDS - 1) // GROUP_WORDS


@inner(fastmath=FASTMATH)
def add_counts(own, first, n_rows, groups, g, n, out, ldo):
    """out (+)= sums of a tile (n_rows, n) int32 with unsigned weights, times the factors of group g of rows `first`
    and after it."""
    factors, sums = floats(own[FACTORS], (first + n_rows) * groups), floats(own[ROW_SUMS], (first + n_rows) * groups)
    for r in range(n_rows):
        row, counts = floats(out + r * ldo, n), integers(own[TILE] + 256 * r, n)
        factor, offset = factors[(first + r) * groups + g], np.int32(128 * sums[(first + r) * groups + g])
        if g == 0:
            for e in range(n):
                row[e] = f32(counts[e] - offset) * factor
        else:
            for e in range(n):
                row[e] += f32(counts[e] - offset) * factor


@inner(fastmath=FASTMATH)
def scale_rows(out, n_rows, n, scale, ldo):
    """Rows (n_rows, n) times factors of columns, in place; addresses."""
    factors = floats(scale, n)
    for r in range(n_rows):
        row = floats(out + r * ldo, n)
        for e in range(n):
            row[e] *= factors[e]


@inner()
def to_bfloat16(x, ldx, n_rows, m, a, lda):
    """x (n_rows, m) float32 -> a (n_rows, lda / 2) bfloat16, rounded to nearest even, zeros behind."""
    half, one = np.uint32(0x7FFF), np.uint32(1)
    for t in range(n_rows):
        row, narrow = bits(x + t * ldx, m), shorts(a + t * lda, lda // 2)
        for i in range(m):
            narrow[i] = np.uint16((row[i] + half + ((row[i] >> np.uint32(16)) & one)) >> np.uint32(16))
        for i in range(m, lda // 2):
            narrow[i] = np.uint16(0)


@inner()
def to_int8(x, ldx, n_rows, m, a, lda, own):
    """x (n_rows, m) float32 -> a (n_rows, lda) int8, zeros behind; factors and sums of each row's groups."""
    groups = n_groups(lda // 4)
    factors, sums = floats(own[FACTORS], n_rows * groups), floats(own[ROW_SUMS], n_rows * groups)
    for t in range(n_rows):
        for g in range(groups):
            begin = GROUP * g
            n, room = max(0, min(GROUP, m - begin)), min(GROUP, lda - begin)
            found = quantised(x + t * ldx + 4 * begin, n, a + t * lda + begin, room)
            factors[t * groups + g], sums[t * groups + g] = found


@inner(fastmath=FASTMATH)
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
