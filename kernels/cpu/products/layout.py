"""How weights lie for narrow products: strips of 16 outputs, in them words of 32 bits.

A word is two bfloat16 or four uint8 of following inputs: [n_pad / 16][k_pad / w][16][w]. A strip's 16 words are a
vector of AVX-512, and 16 times 16 words are a tile of AMX. Inputs and outputs are padded with zeros.
"""

from typing import NamedTuple

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.aligned import aligned
from astra_mpi.kernels.cpu._math import f32

Array = np.ndarray

#: outputs of a strip; there is an even number of strips
STRIP = 16
#: type of products -> numbers in a word, and bytes of one
WORDS = {"bfloat16": (2, 2), "int8": (4, 1)}
#: words of inputs are padded to a multiple of this: the rows of a tile
_TILE_WORDS = 16
#: inputs that share a factor of an int8 row, and the words that they fill: a few large numbers of a row spoil no others
GROUP, GROUP_WORDS = 256, 64
#: what an int8 weight is stored above
ZERO = 128
#: smaller steps of int8 count as none: float32 has no full precision below
TINY = f32(1.1754944e-38)
#: adding 1.5 * 2^23 leaves no place for fractions: it rounds to nearest, ties to even
ROUND = f32(12582912)


class Strips(NamedTuple):
    """A packed matrix (k, n)."""

    kind: str  # "bfloat16" or "int8"
    k: int
    n: int
    words: Array  # uint8, aligned to cache lines: [n_pad / 16][n_words][16] words; bfloat16, or int8 + 128
    scale: Array  # (n_pad,) float32: of every output

    @property
    def n_words(self) -> int:
        """Words of an output."""
        return n_words(self.kind, self.k)

    @property
    def n_strips(self) -> int:
        return len(self.scale) // STRIP

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.scale.nbytes


def n_words(kind: str, k: int) -> int:
    """Words of k inputs, padded."""
    width = WORDS[kind][0] * _TILE_WORDS
    return max(1, -(-k // width)) * _TILE_WORDS


def empty(kind: str, k: int, n: int) -> Strips:
    """A matrix (k, n) of zeros, to be filled by `pack`."""
    n_pad = max(1, -(-n // (2 * STRIP))) * 2 * STRIP
    words = aligned((n_pad * n_words(kind, k) * 4,), np.uint8)
    if kind == "int8":
        words[:] = ZERO
    return Strips(kind, k, n, words, np.ones(n_pad, np.float32))


def pack(strips: Strips, first: int, columns: Array) -> None:
    """Fill outputs first .. first + c with columns (k, c) float32, rounded; first is a multiple of 16.

    int8: the largest magnitude of a column becomes 127.
    """
    at = first // STRIP
    if strips.kind == "bfloat16":
        _pack_bfloat16(columns, strips.words.view(np.uint16).reshape(strips.n_strips, -1)[at:])
    else:
        _pack_int8(columns, strips.words.reshape(strips.n_strips, -1)[at:], strips.scale[first:])


def columns_from(strips: Strips, first: int) -> Strips | None:
    """Outputs `first` and those after it, where they lie; None unless `first` begins a pair of strips."""
    if first % (2 * STRIP):
        return None
    words = strips.words.reshape(strips.n_strips, -1)[first // STRIP :].reshape(-1)
    return strips._replace(n=strips.n - first, words=words, scale=strips.scale[first:])


def unpack(strips: Strips) -> Array:
    """The matrix (k, n) in float32, scaled."""
    per_word, n_bytes = WORDS[strips.kind]
    numbers = strips.words.view(f"u{n_bytes}").reshape(strips.n_strips, -1, STRIP, per_word)
    table = numbers.transpose(1, 3, 0, 2).reshape(-1, strips.n_strips * STRIP)[: strips.k, : strips.n]
    if strips.kind == "bfloat16":
        wide = (table.astype(np.uint32) << 16).view(np.float32)
    else:
        wide = table.astype(np.float32) - np.float32(ZERO)
    return wide * strips.scale[: strips.n]


@compiled()
def to_bfloat16(x):
    """The uint16 of a float32 rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.uint32(f32(x).view(np.uint32))
    if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        return np.uint16((bits >> np.uint32(16)) | np.uint32(0x40))
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@compiled()
def _pack_bfloat16(columns, strips):
    k, n = columns.shape
    for j in range(0, n, STRIP):
        strip, width = strips[j // STRIP], min(STRIP, n - j)
        for i in range(k):
            at = (i // 2) * 2 * STRIP + i % 2
            for c in range(width):
                strip[at + 2 * c] = to_bfloat16(columns[i, j + c])


@compiled(error_model="numpy")
def _pack_int8(columns, strips, scale):
    k, n = columns.shape
    for j in range(0, n, STRIP):
        strip, width = strips[j // STRIP], min(STRIP, n - j)
        steps = scale[j : j + width]
        steps[:] = f32(0)
        for i in range(k):
            for c in range(width):
                size = abs(columns[i, j + c])
                if not size <= steps[c]:  # NaN too
                    steps[c] = size
        for c in range(width):
            step = f32(steps[c] / f32(127))
            steps[c] = f32(1) if step < TINY else step
        for i in range(k):
            at = (i // 4) * 4 * STRIP + i % 4
            for c in range(width):
                rounded = f32(f32(columns[i, j + c] / steps[c]) + ROUND)
                strip[at + 4 * c] = np.uint8(f32(rounded - ROUND) + f32(ZERO))
