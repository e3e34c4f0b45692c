"""Outputs of a panel of rows by AVX-512: sums of some columns of all rows, which are then finished."""

from numba import types
from numba.extending import overload

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._math import f32
from astra_mpi.kernels.cpu.products import avx512
from astra_mpi.kernels.cpu.products.finish import finish
from astra_mpi.kernels.cpu.products.layout import GROUP_WORDS, STRIP

#: words multiplied before the next strips: two strips of them, and the panel's part, stay in the cache
_WORDS = 768


@compiled()
def columns(tiles, layer, room, n_rows, first, last, out, stride, mode):
    """Outputs first .. last (multiples of 32, or the end) of the panel's rows, to rows `stride` bytes apart at `out`.

    mode: SET or ADD float32, or BFLOAT16, and `out` is a panel whose rows have `stride` bytes.
    """
    strip_bytes, width = 4 * STRIP * layer.n_words, room.sums.shape[1]
    for j in range(first, last, width):
        n = min(width, last - j)
        n_strips = 2 * ((n + 2 * STRIP - 1) // (2 * STRIP))
        strips = (j // STRIP) * strip_bytes
        multiply(room.panel, room, n_rows, layer.strips + strips, layer.n_words, n_strips, room.sums)
        if layer.gate != 0:
            multiply(room.panel, room, n_rows, layer.gate + strips, layer.n_words, n_strips, room.gate_sums)
        finish(tiles, layer, room, 0, n_rows, j, 0, n, out, stride, mode)


def multiply(panel, room, n_rows, strips, n_words, n_strips, sums):
    """sums[:n_rows, : 16 n_strips] = panel @ n_strips strips from the address `strips`, but for the columns' scale.

    panel: of the room; its type is that of the products.
    """
    raise NotImplementedError


@overload(multiply)
def _multiply_of(panel, room, n_rows, strips, n_words, n_strips, sums):
    by = _floats if panel.dtype == types.uint16 else _integers
    return lambda panel, room, n_rows, strips, n_words, n_strips, sums: by(
        panel, room, n_rows, strips, n_words, n_strips, sums
    )


@compiled()
def _floats(panel, room, n_rows, strips, n_words, n_strips, sums):
    a, lda = panel.ctypes.data, panel.strides[0]
    for w in range(0, n_words, _WORDS):
        words, begin = min(_WORDS, n_words - w), 1 if w == 0 else 0
        at = strips + 4 * STRIP * w
        avx512.sweep(a + 4 * w, lda, n_rows, at, 4 * STRIP * n_words, n_strips, sums, 0, words, begin)


@compiled()
def _integers(panel, room, n_rows, strips, n_words, n_strips, sums):
    """Exact sums of each group of inputs, times the factor that a row has in it."""
    a, lda, n = panel.ctypes.data, panel.strides[0], STRIP * n_strips
    for w in range(0, n_words, GROUP_WORDS):
        words, at = min(GROUP_WORDS, n_words - w), strips + 4 * STRIP * w
        avx512.sweep(a + 4 * w, lda, n_rows, at, 4 * STRIP * n_words, n_strips, room.counts, 0, words, 1)
        factors, offsets = room.factors[w // GROUP_WORDS], room.offsets[w // GROUP_WORDS]
        for i in range(n_rows):
            counts, row, factor, offset = room.counts[i, :n], sums[i, :n], factors[i], offsets[i]
            if w == 0:
                for j in range(n):
                    row[j] = f32(counts[j] - offset) * factor
            else:
                for j in range(n):
                    row[j] += f32(counts[j] - offset) * factor
