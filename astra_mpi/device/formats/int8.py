"""Integers -127 .. 127 times one factor per output of the layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.device.formats.compiled import Compiled
from astra_mpi.device.formats.narrow import is_layer
from astra_mpi.device.formats.scaled import Scaled


class Int8(Scaled, Compiled):
    """Off by at most half a step, 1/254 of the largest magnitude of an output."""

    dtype = "int8"
    number = np.dtype("i1")
    bits = 8
    largest = 127

    @classmethod
    def narrow_numbers(cls, array: np.ndarray) -> np.ndarray:
        return np.rint(array)

    @classmethod
    def wide_numbers(cls, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)

    @classmethod
    def rounding(cls, name: str, before: np.ndarray) -> np.ndarray:
        axis = 0 if is_layer(name, before.shape) else 1
        # half a step, and the factor, the quotient and the product are float32 each
        share = 0.5 / cls.largest + 2 * np.finfo(np.float32).eps
        return np.abs(before).max(axis=axis, keepdims=True) * np.float32(share)

    @classmethod
    def rounded_tensor(cls, weight: Any, inputs: tuple[int, ...]) -> Any:
        scale = cls.scale_of_tensor(weight, inputs)
        return (weight / scale).round() * scale
