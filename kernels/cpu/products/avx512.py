"""Products of a panel of rows with strips, by AVX-512: vdpbf16ps or vpdpbusd, twelve rows by two strips at a time."""

from numba import types
from numba.extending import intrinsic

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._simd import dot_tile_code


def _tile(n_rows: int, n_strips: int, prefetch: bool = True):
    """`dot_tile` of the type that `sums` has: float32 for bfloat16, int32 for int8."""

    @intrinsic
    def tile(typingctx, sums, a, lda, b, ldb, c, ldc, n_words, begin):
        generate = dot_tile_code("bfloat16" if sums.dtype == types.float32 else "int8", n_rows, n_strips, prefetch)
        return types.void(sums, *[types.int64] * 8), lambda context, builder, signature, arguments: generate(
            context, builder, signature, arguments[1:]
        )

    return tile


_tile_12x2, _tile_8x2, _tile_4x2, _tile_1x2 = _tile(12, 2), _tile(8, 2), _tile(4, 2), _tile(1, 2)
#: after the first rows have asked for the next strips
_tile_12x2_after = _tile(12, 2, prefetch=False)
#: few rows: more strips at a time, or the sums' latency would be slower than memory
_tile_4x4, _tile_1x4 = _tile(4, 4), _tile(1, 4)
#: rows that a tile may compute beyond those asked for
SPARE_ROWS = 3


@compiled()
def sweep(a, lda, n_rows, b, ldb, n_strips, sums, column, n_words, begin):
    """sums[:n_rows, column : column + 16 n_strips] (+)= rows at `a` @ strips at `b`, from n_words words of each.

    lda, ldb: bytes between rows, and between strips; n_strips is even. begin: 1 sets the sums, 0 adds to them. Rows
    beyond n_rows, SPARE_ROWS at most, are computed too where that is faster.
    """
    ldc = 4 * sums.shape[1]
    c = sums.ctypes.data + 4 * column
    s = 0
    if n_rows <= 4:
        while n_strips - s >= 4:
            if n_rows == 1:
                _tile_1x4(sums, a, lda, b + s * ldb, ldb, c + 64 * s, ldc, n_words, begin)
            else:
                _tile_4x4(sums, a, lda, b + s * ldb, ldb, c + 64 * s, ldc, n_words, begin)
            s += 4
    while s < n_strips:
        i = 0
        while i < n_rows:
            ai, bs, ci = a + i * lda, b + s * ldb, c + i * ldc + 64 * s
            if n_rows - i > 8 and i > 0:
                _tile_12x2_after(sums, ai, lda, bs, ldb, ci, ldc, n_words, begin)
                i += 12
            elif n_rows - i > 8:
                _tile_12x2(sums, ai, lda, bs, ldb, ci, ldc, n_words, begin)
                i += 12
            elif n_rows - i > 4:
                _tile_8x2(sums, ai, lda, bs, ldb, ci, ldc, n_words, begin)
                i += 8
            elif n_rows - i > 1:
                _tile_4x2(sums, ai, lda, bs, ldb, ci, ldc, n_words, begin)
                i += 4
            else:
                _tile_1x2(sums, ai, lda, bs, ldb, ci, ldc, n_words, begin)
                i += 1
        s += 2
