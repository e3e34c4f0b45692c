"""Rows of float32 as bytes: as they are, as float16, or as int8 with one scale per row."""

from __future__ import annotations

import numpy as np

from astra_mpi.device.xp import module_of
from astra_mpi.errors import AstraError

#: rows below this are zeros on an int8 wire: their scale would have lost its precision
_LEAST = np.float32(127) * np.finfo(np.float32).tiny
WIRES = ("float32", "float16", "int8")


def row_bytes(width: int, wire: str) -> int:
    """Bytes of one row of `width` numbers."""
    return {"float32": 4 * width, "float16": 2 * width, "int8": width + 4}[wire]


def pack_rows(x: np.ndarray, wire: str) -> np.ndarray:
    """x (n, width) float32 -> uint8 (n * row_bytes,), row after row.

    int8: the row's scale max|x| / 127 as float32, then round(x / scale), ties to even. AstraError where a number is
    beyond float16.
    """
    xp, x = module_of(x), x.astype(np.float32, copy=False)
    if wire == "int8":
        largest = xp.abs(x).max(axis=1, keepdims=True)  # (n, 1)
        largest = xp.where(largest < _LEAST, np.float32(0), largest)
        scale = largest / np.float32(127)
        steps = xp.where(scale > 0, x / xp.where(scale > 0, scale, np.float32(1)), np.float32(0))
        rows = xp.concatenate([scale.view(np.uint8), xp.rint(steps).astype(np.int8).view(np.uint8)], axis=1)
        return rows.reshape(-1)
    if wire == "float16":
        with np.errstate(over="ignore"):
            half = x.astype(np.float16)
        if xp.isinf(half).any():
            largest = float(xp.abs(x).max())
            raise AstraError(f"an activation of {largest:.3g} is beyond float16; use wire int8 or float32")
        return half.reshape(-1).view(np.uint8)
    return xp.ascontiguousarray(x).reshape(-1).view(np.uint8)


def unpack_rows(rows: np.ndarray, wire: str) -> np.ndarray:
    """uint8 (n, row_bytes) -> float32 (n, width)."""
    if wire == "int8":
        scale = module_of(rows).ascontiguousarray(rows[:, :4]).view(np.float32)  # (n, 1)
        return rows[:, 4:].view(np.int8) * scale
    return rows.view(np.float16 if wire == "float16" else np.float32).astype(np.float32, copy=False)
