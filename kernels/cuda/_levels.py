"""Scalar codes, and messages whose codes differ in bits: in CuPy's own operations, a bit at a time."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from astra_mpi.device.xp import beside
from astra_mpi.kernels.cuda._codes import pack, unpack
from astra_mpi.kernels.reference import bit_places, code_dtype

Array = Any


def encode_levels(x: Array, levels: Array) -> Array:
    """Codes (n, C) of x (n, C); see reference.encode_levels."""
    levels = beside(x, levels)
    middles = cupy.where(levels[:, 1:] > levels[:, :-1], (levels[:, :-1] + levels[:, 1:]) / 2, np.inf)  # repeats: last
    above = x[:, :, None] > middles.astype(x.dtype)[None]  # (n, C, K - 1)
    return above.sum(axis=2).astype(code_dtype(levels.shape[1]))


def pack_columns(codes: Array, bits: np.ndarray) -> Array:
    """Message uint8 of codes (n, C) of bits (C,); see reference.pack_columns."""
    columns, places = (cupy.asarray(of_bit) for of_bit in bit_places(bits))
    return pack((codes[:, columns].astype(np.uint16) >> places.astype(np.uint16) & np.uint16(1)).astype(np.uint8), 1)


def unpack_columns(message: Array, n: int, bits: np.ndarray) -> Array:
    """Codes (n, C) from pack_columns' message; see reference.unpack_columns."""
    columns, places = bit_places(bits)
    flags = unpack(message, n, len(columns), 1).astype(np.uint16)
    codes = cupy.zeros((n, len(bits)), np.uint16)
    for place in range(int(np.max(bits))):
        codes[:, cupy.asarray(columns[places == place])] += (
            flags[:, cupy.asarray(np.flatnonzero(places == place))] << place
        )
    return codes.astype(code_dtype(1 << int(np.max(bits))))
