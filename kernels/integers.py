"""Products of float32 rows and weights whose results are the same to the bit on every processor, in plain NumPy.

Sums of float32 depend on their order, and BLAS has another one for other numbers of rows. Here rows and weights become
integers of 16 bits, group by group, in which next to nothing of them is lost. Sums of their products are exact, whoever
adds them up, and what is done with them in float32 has one order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray

#: inputs that share a step of a row, and of every output's weights; as in cpu/products/layout.py
GROUP = 256
#: the largest integer: both of its digits are of 8 bits
MOST = 127 << 8
#: groups whose largest magnitude is below this are zeros: its inverse must not overflow
LEAST = np.float32(2.0**-100)


class Integers(NamedTuple):
    """Weights (k, m): (high + low / 256) * scale of the group."""

    high: Array  # (k, m) int8
    low: Array  # (k, m) int8
    scale: Array  # (groups, m) float32: the largest magnitude over 127

    @property
    def shape(self) -> tuple[int, ...]:
        """(k, m)."""
        return self.high.shape


class Moved(NamedTuple):
    """keep * state (n, m) + bias (m,), float32, both operations rounded."""

    state: Array
    keep: float
    bias: Array


def integers(weight: Array) -> Integers:
    """Of finite weights (k, m) float32."""
    k, m = weight.shape
    numbers, scale = np.empty((k, m), np.int32), np.empty((-(-k // GROUP), m), np.float32)
    for g in range(len(scale)):
        rows = slice(GROUP * g, GROUP * (g + 1))
        of_outputs, steps = _quantised(np.ascontiguousarray(weight[rows].T, np.float32))
        numbers[rows], scale[g] = of_outputs.T, steps[:, 0] * np.float32(256)
    high, low = _digits(numbers)
    return Integers(high.astype(np.int8), low.astype(np.int8), scale)


def integer_product(parts: Sequence[Array], weights: Integers, out: Array, moved: Moved | None = None) -> Array:
    """out (n, m) float32 = x (n, k) @ weights, in place and returned; x: parts (n, ..) side by side.

    moved: what the product is added to, or zeros. Of each group of inputs in turn, x becomes integers q, to nearest,
    ties to even, whose step is the largest magnitude over MOST. Then out += (q @ high + r @ low) * step * scale, where
    r is the high digit of q: what its low digit adds is less than the rounding of q. The sum is exact and rounded to
    float32, and so is each further operation, so that magnitudes have to be far below float32's largest. NaN and
    infinite numbers make their row NaN.
    """
    out[...] = 0 if moved is None else moved.state * np.float32(moved.keep) + moved.bias
    x = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    for g in range(len(weights.scale)):
        rows = slice(GROUP * g, GROUP * (g + 1))
        q, step = _quantised(x[:, rows])
        share = _exact(q, weights.high[rows], weights.low[rows])
        share *= step
        share *= weights.scale[g]
        out += share
    return out


def _quantised(x: Array) -> tuple[Array, Array]:
    """Integers (n, w) int32 of x (n, w) float32, and their steps (n, 1) float32."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    finite = np.isfinite(largest)
    with np.errstate(all="ignore"):
        q = np.rint(x * np.where(largest >= LEAST, np.float32(MOST) / largest, np.float32(0)))
        return np.where(finite, q, 0).astype(np.int32), np.where(finite, largest / np.float32(MOST), np.float32(np.nan))


def _digits(q: Array) -> tuple[Array, Array]:
    """q = 256 high + low, both from -128 to 127."""
    high = (q + 128) >> 8
    return high, q - (high << 8)


def _exact(q: Array, high: Array, low: Array) -> Array:
    """q (n, w) @ high (w, m) + the high digit of q @ low, as float32, rounded once. BLAS adds integers below 2^24
    exactly in float32, in any order: so digits have products of their own."""
    above, below, wide, rest = (digit.astype(np.float32) for digit in (*_digits(q), high, low))
    most, of_low, of_rest = ((a @ b).astype(np.int32) for a, b in ((above, wide), (below, wide), (above, rest)))
    return ((most << 8) + of_low + of_rest).astype(np.float32)
