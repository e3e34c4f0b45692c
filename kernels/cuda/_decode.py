"""Attention of new tokens to what is kept (decode.cu, merge.cu)."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from astra_mpi.kernels.cuda._attention import finish
from astra_mpi.kernels.cuda._launch import MAX_D_HEAD, ceil_div, kernel, launch, row_stride
from astra_mpi.kernels.cuda_source import options

Array = Any
_MAX_HEADS = 8  # query heads of a key head that a block works on
_BLOCKS = 528  # to aim at: four for each multiprocessor of the largest GPUs
_MOST_PARTS = 1024  # that merge.cu takes
#: keys that are worth a block of their own
SHARE = 64


def attend_new(
    q: Array,
    kv: Array,
    heads: tuple[int, int],
    spans: tuple[Array, Array],
    longest: int,
    key_bias: Array | None,
    key_rows: Array | None,
    state: Array,
    fresh: bool,
    cap: float = 0.0,
) -> None:
    """One step of online softmax for one new token per sequence, in place.

    Scaled queries q (n, H d), kv (m, 2 Hkv d) = [K | V], heads = (H, Hkv). spans: where each sequence's keys begin and
    end, (n,) int64 each; longest: no sequence has more. key_bias, key_rows (keys,): as `attend_packed` takes them.
    state (n, H (d + 2)) float32: sums of the heads, their maxima, sums of their weights. fresh: it holds nothing yet.
    cap: as of `Near`.
    """
    n, n_heads, n_kv_heads = len(q), *heads
    d = q.shape[1] // n_heads
    if d > MAX_D_HEAD:
        raise ValueError(f"heads of {d} numbers are too wide for this kernel; {MAX_D_HEAD} at most")
    if n == 0:
        return
    tiles, per_block = _tiles(heads)
    columns = n_kv_heads * tiles
    splits = max(1, min(ceil_div(longest, SHARE), ceil_div(_BLOCKS, columns * n), _MOST_PARTS))
    parts = None if splits == 1 else cupy.empty((splits, *state.shape), np.float32)
    how = _how(d, per_block, q.dtype == np.float16, _aligned(d, q, kv), cap)
    given = q, row_stride(q), kv, row_stride(kv), key_bias, key_rows, *spans, np.int32(n_heads), np.int32(n_kv_heads)
    capped = (np.float32(cap),) if cap else ()
    launch("decode", "attend_new", (splits, columns, n), 128, (*given, np.int32(fresh), state, parts, *capped), how)
    if parts is not None:
        _merge(parts, state, n_heads, fresh)


def _tiles(heads: tuple[int, int]) -> tuple[int, int]:
    """Blocks that share a key head's query heads, and how many of them each takes."""
    repeat = heads[0] // heads[1]
    tiles = ceil_div(repeat, _MAX_HEADS)
    return tiles, ceil_div(repeat, tiles)


def _aligned(d: int, *arrays: Array) -> bool:
    """Whether heads can be read four numbers at a time, or in half eight where there are as many."""
    n_bytes = arrays[0].itemsize * (8 if d % 8 == 0 and arrays[0].itemsize == 2 else 4)
    return d % 4 == 0 and all(a.data.ptr % n_bytes == 0 and a.strides[0] % n_bytes == 0 for a in arrays)


def _how(d: int, per_block: int, half: bool, vector: bool, cap: float) -> tuple[str, ...]:
    return options(half, vector, D=d, HEADS=per_block, **({"CAPPED": 1} if cap else {}))


def warm_up_new(heads: tuple[int, int], d: int, dtype: type, cap: float = 0.0) -> None:
    """Compile what a step of decoding needs, or load it from CuPy's cache on disk."""
    kernel("decode", "attend_new", _how(d, _tiles(heads)[1], dtype == np.float16, d % 4 == 0, cap))
    kernel("merge", "merge", options(D=d))


def merge_new(parts: Array, state: Array, n_heads: int) -> None:
    """state (n, H (d + 2)) = what the states `parts` (P, n, H (d + 2)) of disjoint keys are together."""
    if len(state):
        _merge(parts, state, n_heads, True)


def _merge(parts: Array, state: Array, n_heads: int, fresh: bool) -> None:
    given = parts, state, np.int32(len(parts)), np.int32(n_heads), np.int32(fresh)
    launch("merge", "merge", (n_heads, len(state)), 128, given, options(D=state.shape[1] // n_heads - 2))


def finish_new(state: Array, out: Array, n_heads: int) -> None:
    """out (n, H d) = sums of `state` (n, H (d + 2)) over their weights."""
    n, width = out.shape
    sums = state[:, :width].reshape(n, n_heads, width // n_heads).transpose(1, 0, 2)
    finish(sums, state[:, width + n_heads :].T, out)
