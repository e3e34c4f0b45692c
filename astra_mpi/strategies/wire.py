"""Rows of float32 as bytes: as they are, as float16, or as int8 with one scale per row."""

from __future__ import annotations

import numpy as np

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
    if wire == "int8":
        largest = np.abs(x).max(axis=1, keepdims=True, initial=0)  # (n, 1)
        largest[largest < _LEAST] = 0
        scale = largest / np.float32(127)
        steps = np.divide(x, scale, out=np.zeros_like(x), where=scale > 0)
        rows = np.concatenate([scale.view(np.uint8), np.rint(steps).astype(np.int8).view(np.uint8)], axis=1)
        return rows.reshape(-1)
    if wire == "float16":
        with np.errstate(over="ignore"):
            half = x.astype(np.float16)
        if np.isinf(half).any():
            raise AstraError(f"an activation of {np.abs(x).max():.3g} is beyond float16; use wire int8 or float32")
        return half.reshape(-1).view(np.uint8)
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def unpack_rows(rows: np.ndarray, wire: str) -> np.ndarray:
    """uint8 (n, row_bytes) -> float32 (n, width)."""
    if wire == "int8":
        scale = np.ascontiguousarray(rows[:, :4]).view(np.float32)  # (n, 1)
        return rows[:, 4:].view(np.int8) * scale
    return rows.view(np.float16 if wire == "float16" else np.float32).astype(np.float32, copy=False)
