"""Attention of new tokens to what is kept (decode.cu)."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from astra_mpi.kernels.cuda._attention import finish
from astra_mpi.kernels.cuda._launch import MAX_D_HEAD, ceil_div, launch, row_stride, vectors
from astra_mpi.kernels.cuda_source import options

Array = Any
_MAX_HEADS = 8  # query heads of a key head that a block works on
_BLOCKS = 528  # to aim at: four for each multiprocessor of the largest GPUs
#: keys that are worth a block of their own
SHARE = 256


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
) -> None:
    """One step of online softmax for one new token per sequence, in place.

    Scaled queries q (n, H d), kv (m, 2 Hkv d) = [K | V], heads = (H, Hkv). spans: where each sequence's keys begin and
    end, (n,) int64 each; longest: no sequence has more. key_bias, key_rows (keys,): as `attend_packed` takes them.
    state (n, H (d + 2)) float32: sums of the heads, their maxima, sums of their weights. fresh: it holds nothing yet.
    """
    n, n_heads, n_kv_heads = len(q), *heads
    d = q.shape[1] // n_heads
    if d > MAX_D_HEAD:
        raise ValueError(f"heads of {d} numbers are too wide for this kernel; {MAX_D_HEAD} at most")
    if n == 0:
        return
    repeat = n_heads // n_kv_heads
    per_block = min(repeat, _MAX_HEADS)
    columns = n_kv_heads * ceil_div(repeat, per_block)
    splits = max(1, min(ceil_div(longest, SHARE), ceil_div(_BLOCKS, columns * n)))
    parts = None if splits == 1 else cupy.empty((splits, *state.shape), np.float32)
    how = options(q.dtype == np.float16, d % 4 == 0 and vectors(d, q, kv), D=d, HEADS=per_block)
    given = q, row_stride(q), kv, row_stride(kv), key_bias, key_rows, *spans, np.int32(n_heads), np.int32(n_kv_heads)
    launch("decode", "attend_new", (splits, columns, n), 128, (*given, np.int32(fresh), state, parts), how)
    if parts is not None:
        _merge(parts, state, n_heads, fresh, how)


def merge_new(parts: Array, state: Array, n_heads: int) -> None:
    """state (n, H (d + 2)) = what the states `parts` (P, n, H (d + 2)) of disjoint keys are together."""
    d = state.shape[1] // n_heads - 2
    if len(state):
        _merge(parts, state, n_heads, True, options(D=d, HEADS=1))


def _merge(parts: Array, state: Array, n_heads: int, fresh: bool, how: tuple[str, ...]) -> None:
    given = parts, state, np.int32(len(parts)), np.int32(n_heads), np.int32(fresh)
    launch("decode", "merge", (n_heads, len(state)), 128, given, how)


def finish_new(state: Array, out: Array, n_heads: int) -> None:
    """out (n, H d) = sums of `state` (n, H (d + 2)) over their weights."""
    n, width = out.shape
    sums = state[:, :width].reshape(n, n_heads, width // n_heads).transpose(1, 0, 2)
    finish(sums, state[:, width + n_heads :].T, out)
