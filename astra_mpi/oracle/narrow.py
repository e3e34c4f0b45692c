"""Products in a narrow type as the oracle has them: both factors rounded, sums of float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: types of products; those of which a CPU without instructions rounds the weights alone; attention rounds its factors
#: to bfloat16 in the former
NARROW = ("bfloat16", "int8")
WEIGHTS_ONLY = {"bfloat16": "bfloat16 weights", "int8": "int8 weights"}


class InBlocks(np.ndarray):
    """A weight that products in "int8" take as it is, and 32 of its inputs at a time: rows are rounded so too."""


def product(x: Array, weight: Array, compute: str) -> Array:
    """x (n, k) @ weight (k, m) in float64, after rounding: "bfloat16" every number, "int8" x by rows, 256
    numbers at a time, weight by columns; of WEIGHTS_ONLY not x; "float32" nothing."""
    if isinstance(weight, InBlocks):
        weight = weight.view(np.ndarray)
        if compute.startswith("int8"):
            return eight_bits(x.reshape(len(x), -1, 32)).reshape(x.shape) @ weight
    if compute.startswith("bfloat16"):
        weight = bfloat16(weight)
    elif compute.startswith("int8"):
        weight = eight_bits(weight.T).T
    if compute in NARROW:
        x = bfloat16(x) if compute == "bfloat16" else in_groups(x)
    return x @ weight


def in_groups(x: Array) -> Array:
    """`eight_bits` of 256 numbers of each row at a time."""
    return np.concatenate([eight_bits(x[..., a : a + 256]) for a in range(0, x.shape[-1], 256)], axis=-1)


def bfloat16(x: Array) -> Array:
    """The nearest bfloat16 numbers, of a tie the even one; NaN and infinities stay."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return np.where(np.isfinite(x), rounded.astype(np.uint32).view(np.float32), x).astype(np.float64)


def eight_bits(x: Array) -> Array:
    """Each row as multiples, -127 to 127, of 1/127 of its largest magnitude."""
    step = np.abs(x).max(axis=-1, keepdims=True, initial=0) / 127
    return np.rint(x / np.where(step == 0, 1, step)) * step
