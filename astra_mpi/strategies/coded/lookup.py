"""Far keys and values from codes by a table: a key per token, or one per distinct code."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType

import numpy as np

from astra_mpi.codec.tables import FarTable, distinct
from astra_mpi.device.xp import beside, on_host
from astra_mpi.partition import displs
from astra_mpi.strategies.far_keys import FarKeys


def looked_up(
    table: FarTable,
    codes: np.ndarray,
    offsets: np.ndarray,
    tokens: np.ndarray,
    reads_rows: bool,
    kernels: ModuleType,
) -> FarKeys:
    """Codes (m, C) -> a key per token. reads_rows: attention reads finished rows where they are, in the table."""
    if reads_rows and table.rows is not None:
        return FarKeys(beside(codes, table.rows), offsets, tokens=tokens, rows=_as_rows(codes[:, 0]))
    return FarKeys(table.far_kv(codes, kernels), offsets, tokens=tokens)


def counted(
    table: FarTable, codes: np.ndarray, offsets: np.ndarray, packed: bool, reads_rows: bool, kernels: ModuleType
) -> FarKeys:
    """Codes (m, 1) -> one key per distinct code and sequence, log(count) added to its score."""
    assert table.rows is not None
    size = len(table.rows)
    if packed:
        values, bias, ends = kernels.distinct(codes, beside(codes, offsets), size)
        starts = np.arange(len(offsets), dtype=np.int64) * size
        return FarKeys(beside(codes, table.rows), starts, bias, rows=values, ends=ends)
    pairs = [distinct(codes[a:b], size, kernels) for a, b in pairwise(offsets)]
    values = np.concatenate([np.empty(0, np.int64), *(value for value, _ in pairs)])
    bias = np.concatenate([np.empty(0, np.float32), *(bias for _, bias in pairs)])
    offsets = displs(np.array([len(value) for value, _ in pairs], dtype=np.int64))
    return FarKeys(table.rows, offsets, bias, rows=values) if reads_rows else FarKeys(table.rows[values], offsets, bias)


def _as_rows(codes: np.ndarray) -> np.ndarray:
    """Codes (m,) as attention takes rows of a table, in the host's memory or a device's."""
    return codes.astype(np.int64 if on_host(codes) else np.int32)


def as_items(codes: np.ndarray) -> np.ndarray:
    """Codes (n, C) -> (n,) opaque items, equal where all C codes are."""
    return np.ascontiguousarray(codes).view(f"V{codes.shape[1] * codes.itemsize}").reshape(len(codes))
