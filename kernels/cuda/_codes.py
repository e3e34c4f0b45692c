"""Encoding, and what is done with codes (encode.cu, codes.cu)."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from astra_mpi.device.xp import beside
from astra_mpi.kernels.cuda._launch import ceil_div, kernel, launch, row_stride, vectors
from astra_mpi.kernels.cuda_source import options
from astra_mpi.kernels.reference import check_message, code_dtype

Array = Any
_C_TYPES = {np.dtype(np.uint8): "unsigned char", np.dtype(np.uint16): "unsigned short"}
_TILE = 128  # rows and entries of a block of `nearest`
_BLOCKS = 528  # of `nearest`, to aim at: four for each multiprocessor of the largest GPUs

_SLICE_BYTES = 96 << 10  # of tables in shared memory: two blocks per multiprocessor of 227 KB, one of 163 KB
_SLICE_BLOCKS = 396  # at most: three for each multiprocessor of the largest GPUs, so that all end together
_REUSE = 2  # tokens per code of a table and block from which on tables are worth being brought to shared memory


def encode_grouped(x: Array, entries: Array, half_norms: Array) -> Array:
    """Codes (n, G) of x (n, G*W); see reference.encode_grouped."""
    n_groups, n_codes, _ = entries.shape
    codes = cupy.empty((len(x), n_groups), code_dtype(n_codes))
    if len(x):
        best = cupy.full((len(x), n_groups), np.iinfo(np.uint64).max, np.uint64)
        _nearest(x.astype(np.float32, copy=False), beside(x, entries), beside(x, half_norms), best)
        _settle(best, codes, 0, None, beside(x, entries))
    return codes


def encode_residual(x: Array, entries: Array, half_norms: Array) -> Array:
    """Codes (n, M) of x (n, W); see reference.encode_residual."""
    n_stages, n_codes, _ = entries.shape
    codes = cupy.empty((len(x), n_stages), code_dtype(n_codes))
    if len(x):
        entries, half_norms = beside(x, entries), beside(x, half_norms)
        best = cupy.full((len(x), 1), np.iinfo(np.uint64).max, np.uint64)
        rest = cupy.array(x, np.float32, order="C")
        for m in range(n_stages):
            stage = entries[m : m + 1]
            _nearest(rest, stage, half_norms[m : m + 1], best)
            _settle(best, codes, m, rest, stage)
    return codes


def _nearest(x: Array, entries: Array, half_norms: Array, best: Array) -> None:
    n_groups, n_codes, width = entries.shape
    rows, tiles = ceil_div(len(x), _TILE), ceil_div(n_codes, _TILE)
    grid = rows, min(tiles, ceil_div(_BLOCKS, rows * n_groups)), n_groups
    given = x, row_stride(x), entries, half_norms, best, np.int32(len(x)), np.int32(n_codes), np.int32(width)
    launch("encode", "nearest", grid, 256, given, _how(best, vector=vectors(width, x, entries)))


def _settle(best: Array, codes: Array, column: int, rest: Array | None, entries: Array) -> None:
    n, n_columns = codes.shape
    n_groups, n_codes, width = entries.shape
    sizes = (np.int32(size) for size in (n, n_groups, n_codes, width))
    given = best, codes, np.int32(n_columns), np.int32(column), rest, entries, *sizes
    launch("encode", "settle", (ceil_div(n, 4),), 128, given, _how(codes))


def _how(codes: Array, half: bool = False, vector: bool = False, **defines: int) -> tuple[str, ...]:
    """Options for codes of this type; where there are none, any does."""
    return options(half, vector, **defines, CODE=_C_TYPES.get(codes.dtype, "unsigned char"))


def decode_grouped(codes: Array, entries: Array) -> Array:
    """(n, G*W) from codes (n, G) and entries (G, K, W); see reference.decode_grouped."""
    entries = beside(codes, entries)
    n_groups, n_codes, width = entries.shape
    out = cupy.empty((len(codes), n_groups * width), entries.dtype)
    if len(codes):
        sizes = (np.int32(size) for size in (len(codes), n_groups, n_codes, width))
        grid = min(len(codes), 65535), ceil_div(n_groups * width, 128)
        given = cupy.ascontiguousarray(codes), entries, out, *sizes
        launch("codes", "look_up", grid, 128, given, _how(codes, entries.dtype == np.float16))
    return out


def decode_residual(codes: Array, entries: Array) -> Array:
    """(n, W) from codes (n, M) and entries (M, K, W), added in order; see reference.decode_residual."""
    return table_sum(codes, entries, None, None, in_order=True)


def pack(codes: Array, bits: int) -> Array:
    """Message uint8 (ceil(n*C*bits/8),) of codes (n, C); see reference.pack."""
    message = cupy.empty(ceil_div(codes.size * bits, 8), np.uint8)
    if message.size:
        given = cupy.ascontiguousarray(codes), message, np.int64(codes.size), np.int32(bits), np.int64(message.size)
        launch("codes", "pack", (ceil_div(message.size, 128),), 128, given, _how(codes))
    return message


def unpack(message: Array, n: int, C: int, bits: int) -> Array:
    """Codes (n, C) from pack's message; see reference.unpack."""
    check_message(message, n * C, bits)
    if bits == 0:
        return cupy.zeros((n, C), np.uint8)
    codes = cupy.empty((n, C), code_dtype(1 << bits))
    if codes.size:
        given = message, codes, np.int64(codes.size), np.int32(bits), np.int64(message.size)
        launch("codes", "unpack", (ceil_div(codes.size, 128),), 128, given, _how(codes))
    return codes


def table_sum(codes: Array, tables: Array, scale: Array | None, bias: Array | None, in_order: bool = False) -> Array:
    """(n, E), of the tables' type: scale[i] * sum_c tables[c, codes[i, c]] + bias; see reference.table_sum.

    in_order: of c, however many tokens there are.
    """
    tables, bias = beside(codes, tables), beside(codes, bias)
    n_tables, n_codes, width = tables.shape
    out = cupy.empty((len(codes), width), tables.dtype)
    if len(codes):
        vector = vectors(width, tables, out)
        scale = None if scale is None else cupy.ascontiguousarray(scale)
        half, columns = tables.dtype == np.float16, _slice(len(codes), tables) if vector and not in_order else 0
        given: tuple[Any, ...] = cupy.ascontiguousarray(codes), tables, scale, bias, out, np.int32(len(codes))
        if columns:
            slices = width // columns
            parts = max(1, min(_SLICE_BLOCKS // slices, len(codes) // (_REUSE * n_codes)))
            shared_bytes = n_tables * n_codes * columns * tables.itemsize
            how = _how(codes, half, vector, SLICE=columns, TABLES=n_tables)
            given = *given, np.int32(n_codes), np.int32(width)
            launch("slices", "table_sum_sliced", (slices, parts), 512, given, how, shared_bytes)
        else:
            grid = min(len(codes), 65535), ceil_div(width, 512 if vector else 128)
            given = *given, *(np.int32(size) for size in (n_tables, n_codes, width))
            launch("codes", "table_sum", grid, 128, given, _how(codes, half, vector))
    return out


def _slice(n: int, tables: Array) -> int:
    """Columns of all tables that fit into shared memory together, where so many tokens make that pay; else 0."""
    n_tables, n_codes, width = tables.shape
    if n >= _REUSE * n_codes and n_tables <= 16:  # whose codes a thread keeps in registers
        for n_bytes in (64, 32):  # whole sectors of what is written
            columns = n_bytes // tables.itemsize
            if width % columns == 0 and n_tables * n_codes * n_bytes <= _SLICE_BYTES:
                return columns
    return 0


def gram_sum(codes: Array, gram: Array) -> Array:
    """(n,) float64: sum_ij gram[i, j, codes[:, i], codes[:, j]]; see reference.gram_sum."""
    gram = beside(codes, gram)
    out = cupy.empty(len(codes), np.float64)
    if len(codes):
        sizes = (np.int32(size) for size in (len(codes), gram.shape[0], gram.shape[2]))
        given = cupy.ascontiguousarray(codes), gram, out, *sizes
        launch("codes", "gram_sum", (ceil_div(len(codes), 4),), 128, given, _how(codes))
    return out


def count_codes(codes: Array, K: int) -> Array:
    """counts (K,) int64: how many of the codes (n, 1) are k; see reference.count_codes."""
    return _counts(codes, cupy.asarray(np.array([0, len(codes)], np.int64)), K).astype(np.int64)


def distinct(codes: Array, offsets: Array, K: int) -> tuple[Array, Array, Array]:
    """The distinct ones of codes (n, 1), sequence by sequence, those of sequence s at offsets[s]:offsets[s + 1].

    -> values (B*K,) int32, ascending from s * K on; logarithms (B*K,) float32 of their counts; ends (B,) int64. How
    many there are stays on the device, so that nobody waits for it.
    """
    n_sequences = len(offsets) - 1
    counts = _counts(codes, offsets, K)
    values, logarithms = cupy.zeros(n_sequences * K, np.int32), cupy.zeros(n_sequences * K, np.float32)
    ends = cupy.zeros(n_sequences, np.int64)
    if n_sequences:
        given = counts, values, logarithms, ends, np.int32(K)
        launch("codes", "distinct", (n_sequences,), 128, given, _how(codes))
    return values, logarithms, ends


def _counts(codes: Array, offsets: Array, K: int) -> Array:
    counts = cupy.zeros((len(offsets) - 1) * K, np.int32)
    if len(codes):
        grid = min(ceil_div(len(codes), 128), 64), len(offsets) - 1
        launch("codes", "count", grid, 128, (cupy.ascontiguousarray(codes), offsets, counts, np.int32(K)), _how(codes))
    return counts


def warm_up(dtype: type = np.float32) -> None:
    """Compile what every model needs, or load it from CuPy's cache on disk; the rest follows at first use."""
    half = dtype == np.float16
    for vector in (False, True):
        for name in ("normalise", "activate"):
            kernel("rows", name, options(half, vector))
    kernel("finish", "finish", options(half))
