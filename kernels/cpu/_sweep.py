"""Products of rows with strips in bfloat16, as many of both as there are."""

from numba import njit

from astra_mpi.kernels.cpu._simd import dot_tile

_tile = dot_tile("bfloat16", 12)


@njit
def sweep(a, lda, n_rows, b, ldb, n_strips, sums, column, n_words, begin):
    ldc = 4 * sums.shape[1]
    for s in range(0, n_strips, 2):
        for i in range(0, n_rows, 12):
            _tile(
                a + i * lda,
                lda,
                b + s * ldb,
                ldb,
                sums.ctypes.data + 4 * column + 64 * s + i * ldc,
                ldc,
                n_words,
                begin,
            )
