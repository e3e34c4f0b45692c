"""Floating-point numbers: float32 as plain arrays, float16, and bfloat16, the upper half of a float32."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from astra_mpi.device.formats.compiled import Compiled
from astra_mpi.device.formats.narrow import Narrow

#: numbers looked at at a time
_CHUNK = 1 << 20


class _Float(Narrow):
    exponent: ClassVar[int]  # its bits, all set in NaN and infinite numbers
    half_step: ClassVar[tuple[float, float]]  # largest relative error of rounding, and half the smallest number

    @classmethod
    def finite(cls, values: np.ndarray) -> bool:
        exponent = np.array(cls.exponent, f"u{values.dtype.itemsize}")
        bits = values.reshape(-1).view(exponent.dtype)
        parts = (bits[first : first + _CHUNK] for first in range(0, bits.size, _CHUNK))
        return not any(bool(((part & exponent) == exponent).any()) for part in parts)

    @classmethod
    def rounding(cls, name: str, before: np.ndarray) -> np.ndarray:
        share, smallest = cls.half_step
        return np.abs(before) * share + smallest

    @classmethod
    def rounded_tensor(cls, weight: Any, inputs: tuple[int, ...]) -> Any:
        import torch

        return weight.to(getattr(torch, cls.dtype)).float()


class Float32(_Float):
    """Nothing is narrow."""

    dtype = "float32"
    number = np.dtype("f4")
    bits = 32
    exponent = 0x7F800000
    half_step = (0.0, 0.0)

    @classmethod
    def holds(cls, name: str, shape: tuple[int, ...]) -> bool:
        return False

    @classmethod
    def from_stored(cls, name: str, shape: tuple[int, ...], values: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
        return values

    @classmethod
    def wide_numbers(cls, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)


class Float16(_Float, Compiled):
    """Numbers beyond 65504 become infinite."""

    dtype = "float16"
    number = np.dtype("f2")
    bits = 16
    exponent = 0x7C00
    half_step = (2.0**-11, 2.0**-25)

    @classmethod
    def narrow_numbers(cls, array: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return array.astype(np.float16)

    @classmethod
    def wide_numbers(cls, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)


class BFloat16(_Float, Compiled):
    """The upper half of a float32, as uint16, rounded to nearest, ties to even."""

    dtype = "bfloat16"
    number = np.dtype("u2")
    tagged = True
    bits = 16
    exponent = 0x7F80
    half_step = (2.0**-8, 2.0**-134)

    @classmethod
    def narrow_numbers(cls, array: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)

    @classmethod
    def wide_numbers(cls, values: np.ndarray) -> np.ndarray:
        return (values.astype(np.uint32) << 16).view(np.float32)
