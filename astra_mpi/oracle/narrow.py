"""Products in a narrow type as the oracle has them: both factors rounded, sums of float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: types of products; those of which a CPU without instructions rounds the weights alone; attention rounds its factors
#: to bfloat16 in the former
NARROW = ("bfloat16", "int8")
WEIGHTS_ONLY = {"bfloat16": "bfloat16 weights", "int8": "int8 weights"}
#: what moves one rounding in some tens, relative to the numbers of a row
_LITTLE = {"bfloat16": 2.0**-14, "int8": 2.0**-11, "int16": 2.0**-19}
#: the largest integers of 8 and of 16 bits (kernels/integers.py)
_MOST, _MOST_OF_STATES = 127, 127 << 8


class InBlocks(np.ndarray):
    """A weight that products in "int8" take as it is, and 32 of its inputs at a time: rows are rounded so too."""


@dataclass(frozen=True)
class Rounding:
    """What becomes of the factors of products, by the type of these.

    With `draw`, activations are rounded otherwise. By chance: to one of their two neighbours, the nearer one more
    often, so that the mean is exact. Else to the nearest after a little noise, which moves one rounding in some tens,
    until what becomes of these has moved the others too. So ranks and oracle differ.
    """

    compute: str = "float32"
    draw: np.random.Generator | None = None
    by_chance: bool = False

    def product(self, x: Array, weight: Array) -> Array:
        """x (n, k) @ weight (k, m) in float64, after rounding: "bfloat16" every number, "int8" x by rows, 256
        numbers at a time, weight by columns; of WEIGHTS_ONLY not x; "float32" nothing."""
        compute, x, chance = self.compute, self._moved(x), self._chance
        if isinstance(weight, InBlocks):
            weight = weight.view(np.ndarray)
            if compute.startswith("int8"):
                return eight_bits(x.reshape(len(x), -1, 32), chance).reshape(x.shape) @ weight
        if compute.startswith("bfloat16"):
            weight = bfloat16(weight)
        elif compute.startswith("int8"):
            weight = eight_bits(weight.T).T
        if compute in NARROW:
            x = bfloat16(x, chance) if compute == "bfloat16" else in_groups(x, chance)
        return x @ weight

    def of_states(self, x: Array, weight: Array) -> Array:
        """x (.., k) @ weight (k, m), in any type of products: both in integers of 16 bits, 256 inputs at a time, but
        for the products of their low digits."""
        x, total = self._moved(x, "int16"), np.zeros((*x.shape[:-1], weight.shape[1]))
        for a in range(0, x.shape[-1], 256):
            rows, steps = multiples(x[..., a : a + 256], self._chance, _MOST_OF_STATES)
            columns, scale = multiples(weight[a : a + 256].T.astype(np.float64), most=_MOST_OF_STATES)
            total += (rows @ columns.T - _low_digits(rows) @ _low_digits(columns).T) * steps * scale[:, 0]
        return total

    def of_attention(self, x: Array) -> Array:
        """A factor of one of attention's two products."""
        return bfloat16(self._moved(x), self._chance) if self.compute in NARROW else x

    @property
    def _chance(self) -> np.random.Generator | None:
        return self.draw if self.by_chance else None

    def _moved(self, x: Array, to: str = "") -> Array:
        to = to or self.compute
        if self.draw is None or self.by_chance or to not in _LITTLE:
            return x
        scale = np.sqrt((x**2).mean(axis=-1, keepdims=True))
        return x + self.draw.normal(0, _LITTLE[to], x.shape) * scale


EXACT = Rounding()


def in_groups(x: Array, draw: np.random.Generator | None = None) -> Array:
    """`eight_bits` of 256 numbers of each row at a time."""
    return np.concatenate([eight_bits(x[..., a : a + 256], draw) for a in range(0, x.shape[-1], 256)], axis=-1)


def bfloat16(x: Array, draw: np.random.Generator | None = None) -> Array:
    """The nearest bfloat16 numbers, of a tie the even one, or by chance; NaN and infinities stay."""
    bits = np.array(x, np.float32, order="C").view(np.uint32)
    finite = np.isfinite(x).all()
    kept = bits.copy() if not finite else bits
    bits += ((bits >> 16) & 1) + np.uint32(0x7FFF) if draw is None else draw.integers(0, 1 << 16, bits.shape, np.uint32)
    bits &= np.uint32(0xFFFF0000)
    wide = bits.view(np.float32).astype(np.float64)
    return wide if finite else np.where(np.isfinite(x), wide, kept.view(np.float32))


def eight_bits(x: Array, draw: np.random.Generator | None = None) -> Array:
    """Each row as multiples, -127 to 127, of 1/127 of its largest magnitude: the nearest ones, or by chance."""
    integers, step = multiples(x, draw, _MOST)
    return integers * step


def multiples(x: Array, draw: np.random.Generator | None = None, most: int = _MOST) -> tuple[Array, Array]:
    """The integers, -most to most, and the step of each row, which is 1/most of its largest magnitude."""
    step = np.abs(x).max(axis=-1, keepdims=True, initial=0) / most
    steps = x / np.where(step == 0, 1, step)
    if draw is None:
        return np.rint(steps), step
    return np.clip(np.floor(steps + draw.random(x.shape)), -most, most), step


def _low_digits(integers: Array) -> Array:
    """What they are above the nearest multiple of 256."""
    return integers - 256 * np.floor((integers + 128) / 256)
