"""Rows times a strip of columns, tile after tile; the strip stays in the cache for all rows."""

from numba import njit

from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu.dense.tile import HAS_TILES, float_tile

#: columns of strips
WIDE, NARROW, WIDEST = 32, 16, 48

if HAS_TILES:
    _asking = float_tile(10, 2, asks=True)
    _wide_10, _wide_9, _wide_8, _wide_7, _wide_6 = (float_tile(n, 2) for n in (10, 9, 8, 7, 6))
    _wide_5, _wide_4, _wide_3, _wide_2, _wide_1 = (float_tile(n, 2) for n in (5, 4, 3, 2, 1))
    _narrow_12, _narrow_4, _narrow_1 = (float_tile(n, 1) for n in (12, 4, 1))
    _widest_8, _widest_1 = float_tile(8, 3), float_tile(1, 3)
else:

    @njit
    def _none(a, lda, b, ldb, c, ldc, k, begin, ahead):
        raise NotImplementedError("this processor has no such product")

    _asking = _wide_10 = _wide_9 = _wide_8 = _wide_7 = _wide_6 = _wide_5 = _wide_4 = _wide_3 = _wide_2 = _wide_1 = _none
    _narrow_12 = _narrow_4 = _narrow_1 = _widest_8 = _widest_1 = _none


@inner()
def wide_strip(a, lda, n_rows, b, ldb, c, ldc, k, begin, ahead):
    """c (n_rows, WIDE) (+)= a (n_rows, k) @ b (k, WIDE), addresses and strides in bytes; begin, ahead: `float_tile`.

    Tiles after the first one, of ten rows, are as high as one another: one of a row takes as long as one of four.
    """
    i = 0
    if n_rows >= 10:
        _asking(a, lda, b, ldb, c, ldc, k, begin, ahead)
        i = 10
    while i < n_rows:
        left = n_rows - i
        height = -(-left // -(-left // 10))
        _wide(height, a + i * lda, lda, b, ldb, c + i * ldc, ldc, k, begin)
        i += height


@inner()
def _wide(height, a, lda, b, ldb, c, ldc, k, begin):
    """`wide_strip` of one tile."""
    if height == 10:
        _wide_10(a, lda, b, ldb, c, ldc, k, begin, 0)
    elif height == 9:
        _wide_9(a, lda, b, ldb, c, ldc, k, begin, 0)
    elif height == 8:
        _wide_8(a, lda, b, ldb, c, ldc, k, begin, 0)
    elif height == 7:
        _wide_7(a, lda, b, ldb, c, ldc, k, begin, 0)
    elif height == 6:
        _wide_6(a, lda, b, ldb, c, ldc, k, begin, 0)
    elif height == 5:
        _wide_5(a, lda, b, ldb, c, ldc, k, begin, 0)
    elif height == 4:
        _wide_4(a, lda, b, ldb, c, ldc, k, begin, 0)
    elif height == 3:
        _wide_3(a, lda, b, ldb, c, ldc, k, begin, 0)
    elif height == 2:
        _wide_2(a, lda, b, ldb, c, ldc, k, begin, 0)
    else:
        _wide_1(a, lda, b, ldb, c, ldc, k, begin, 0)


@inner()
def narrow_strip(a, lda, n_rows, b, ldb, c, ldc, k, begin):
    """The same of NARROW columns."""
    i = 0
    while n_rows - i >= 12:
        _narrow_12(a + i * lda, lda, b, ldb, c + i * ldc, ldc, k, begin, 0)
        i += 12
    while n_rows - i >= 4:
        _narrow_4(a + i * lda, lda, b, ldb, c + i * ldc, ldc, k, begin, 0)
        i += 4
    while n_rows - i >= 1:
        _narrow_1(a + i * lda, lda, b, ldb, c + i * ldc, ldc, k, begin, 0)
        i += 1


@inner()
def widest_strip(a, lda, n_rows, b, ldb, c, ldc, k, begin):
    """The same of WIDEST columns."""
    i = 0
    while n_rows - i >= 8:
        _widest_8(a + i * lda, lda, b, ldb, c + i * ldc, ldc, k, begin, 0)
        i += 8
    while n_rows - i >= 1:
        _widest_1(a + i * lda, lda, b, ldb, c + i * ldc, ldc, k, begin, 0)
        i += 1
