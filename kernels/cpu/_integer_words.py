"""How weights in integers lie for products, by digits and by pairs (kernels/integers.py)."""

from collections.abc import Callable

import numpy as np

from astra_mpi.kernels.aligned import aligned
from astra_mpi.kernels.cpu._digits import LINE
from astra_mpi.kernels.cpu.products.layout import GROUP, STRIP, ZERO
from astra_mpi.kernels.integers import Integers
from astra_mpi.kernels.kept import Kept

Array = np.ndarray

#: outputs of two strips, which are summed up at once
COLUMNS = 2 * STRIP


def padded(k: int) -> int:
    """Inputs, in whole lines."""
    return -(-k // LINE) * LINE


def _strips(numbers: Array, dtype: type, more: int) -> Array:
    """(pairs, 2, 16, k_pad): numbers (k, m) and `more`, of pairs of strips of 16 outputs."""
    k, m = numbers.shape
    table = np.full((-(-m // COLUMNS) * COLUMNS, padded(k)), more, dtype)
    table[:m, :k] = numbers.T.astype(np.int16) + more
    return table.reshape(-1, 2, STRIP, padded(k))


def _digit_words(weights: Integers) -> Array:
    """(pairs, 2, 2, k_pad / 4, 16, 4) uint8, ZERO more: of two strips the high digits, then the low ones."""
    digits = np.stack([_strips(numbers, np.uint8, ZERO) for numbers in (weights.high, weights.low)], axis=1)
    return digits.reshape(*digits.shape[:-1], -1, 4).swapaxes(3, 4)


def _pair_words(weights: Integers) -> Array:
    """(pairs, 2, k_pad, 16, 2) int16, of two strips: of each group the high digits, then the low ones."""
    both = [_strips(numbers, np.int16, 0) for numbers in (weights.high, weights.low)]
    groups = [digit[..., g : g + GROUP] for g in range(0, both[0].shape[-1], GROUP) for digit in both]
    row = np.concatenate(groups, axis=-1)
    return row.reshape(*row.shape[:-1], -1, 2).swapaxes(2, 3)


def _packing(words_of: Callable[[Integers], Array]) -> Kept[tuple[Array, Array]]:
    """Of the high digits, and the weights that they are of: their words, and scale (groups, n_pad)."""

    def pack(high: Array, weights: Integers) -> tuple[Array, Array]:
        found = words_of(weights)
        words, scale = aligned(found.shape, found.dtype), aligned((len(weights.scale), len(found) * COLUMNS))
        words[...], scale[:, : weights.shape[1]] = found, weights.scale
        return words, scale

    return Kept(pack)


packed_digits, packed_pairs = _packing(_digit_words), _packing(_pair_words)
