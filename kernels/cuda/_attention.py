"""Online softmax attention (attention.cu, attention_half.cu, finish.cu)."""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.device.xp import beside
from astra_mpi.kernels.cuda._launch import MAX_D_HEAD, ceil_div, launch, row_stride, vectors
from astra_mpi.kernels.cuda_source import options
from astra_mpi.kernels.near import Near

Array = Any
_TILE = 64
_BLOCKS = 264  # two for each multiprocessor of the largest GPUs: from there on a block may take twice the queries


def attend(
    q: Array,
    k: Array,
    v: Array,
    key_bias: Array | None,
    causal: int | None,
    acc: Array,
    row_max: Array,
    row_sum: Array,
    near: Near | None = None,
) -> None:
    """One step of online softmax over keys k, v (Hkv, m, d), in place; see reference.attend."""
    n_queries, n_keys = q.shape[1], k.shape[1]
    spans = np.array([0, n_queries]), np.array([0, n_keys]), None
    _attend(q, k, v, spans, key_bias, None, causal, acc, row_max, row_sum, near)


def attend_packed(
    queries: Array,
    kv: Array,
    heads: tuple[int, int],
    spans: tuple[np.ndarray, np.ndarray, Array | None],
    key_bias: Array | None,
    key_rows: Array | None,
    causal: int | None,
    acc: Array,
    row_max: Array,
    row_sum: Array,
    near: Near | None = None,
) -> None:
    """`attend` for every sequence of packed rows, in one launch.

    queries (n, H d), kv (m, 2 Hkv d) = [K | V], heads = (H, Hkv). spans: first query of each sequence (B + 1,), first
    key (B + 1,), end of the keys (B,) on the device, or None: where the next one's begin. key_rows (keys,) int32: which
    row of `kv` each key is, None: its own. near: with the places of all queries and keys. acc n H d, row_max and
    row_sum n H numbers, row by row.
    """
    (n_heads, n_kv_heads), n = heads, len(queries)
    if n == 0 or len(kv) == 0:
        return
    width = kv.shape[1] // 2
    q, k, v = (_split(x, h) for x, h in ((queries, n_heads), (kv[:, :width], n_kv_heads), (kv[:, width:], n_kv_heads)))
    d = q.shape[2]
    state = (row_max[: n * n_heads].reshape(n, n_heads).T, row_sum[: n * n_heads].reshape(n, n_heads).T)
    sums = acc[: n * n_heads * d].reshape(n, n_heads, d).transpose(1, 0, 2)
    _attend(q, k, v, spans, key_bias, key_rows, causal, sums, *state, near)


def _attend(
    q: Array,
    k: Array,
    v: Array,
    spans: tuple[np.ndarray, np.ndarray, Array | None],
    key_bias: Array | None,
    key_rows: Array | None,
    causal: int | None,
    acc: Array,
    row_max: Array,
    row_sum: Array,
    near: Near | None,
) -> None:
    """q, k, v, acc (heads, rows, d), row_max and row_sum (heads, rows) by any head and row strides."""
    n_heads, _, d = q.shape
    q_offsets, k_offsets, k_ends = spans
    longest = int(np.diff(q_offsets).max(initial=0))
    if longest == 0 or k.shape[1] == 0:
        return
    if d > MAX_D_HEAD:
        raise ValueError(f"heads of {d} numbers are too wide for this kernel; {MAX_D_HEAD} at most")
    strides = [np.int64(s // a.itemsize) for a in (q, k, v) for s in a.strides[:2]]
    given = (
        *(q, *strides[:2], k, *strides[2:4], v, *strides[4:]),
        *(key_bias, key_rows, beside(q, q_offsets), beside(q, k_offsets), k_ends),
        *(np.int32(n_heads // k.shape[0]), np.int32(causal is not None), np.int32(causal or 0)),
        *(acc, *(np.int64(s // 4) for s in acc.strides[:2])),
        *(row_max, row_sum, *(np.int64(s // 4) for s in row_max.strides)),
        *_adjustments(q, near),
    )
    near_too = {} if near is None else {"NEAR": 1}
    padded, blocks = ceil_div(d, 16) * 16, n_heads * (len(q_offsets) - 1)
    if q.dtype == np.float16:
        wide = d % 8 == 0 and all(
            a.data.ptr % 16 == 0 and a.strides[0] % 16 == a.strides[1] % 16 == 0 for a in (q, k, v)
        )
        rows = 2 if d <= 64 and ceil_div(longest, 2 * _TILE) * blocks >= _BLOCKS else 1
        how = options(True, D=d, ROWS=rows, WIDE=int(wide), **near_too)
        grid = ceil_div(longest, rows * _TILE), n_heads, len(q_offsets) - 1
        launch("attention_half", "attend", grid, 128, given, how, 4 * _TILE * (padded + 8) + 4 * _TILE)
        return
    vector = vectors(d, q, k, v) and all(a.strides[0] % 16 == 0 for a in (q, k, v))
    tiles = 8 * _TILE * (padded + 4) + 4 * _TILE * (_TILE + 4)  # queries, keys and scores
    grid = ceil_div(longest, _TILE), n_heads, len(q_offsets) - 1
    launch("attention", "attend", grid, 256, given, options(False, vector, D=d, **near_too), tiles + 4 * _TILE)


def _adjustments(q: Array, near: Near | None) -> tuple[Array, ...]:
    """What a kernel compiled with NEAR takes at the end."""
    if near is None:
        return ()
    most = 0 if near.relative is None else near.relative.shape[1] // 2
    places = [beside(q, place) if near.placed else None for place in (near.query_places, near.key_places)]
    return np.float32(near.cap), np.int32(near.window), near.relative, np.int32(most), *places


def finish(acc: Array, row_sum: Array, out: Array) -> None:
    """out (a, H*d) = acc (H, a, d) / row_sum (H, a); see reference.finish."""
    n_heads, n, d = acc.shape
    if acc.size == 0:
        return
    strides = (tuple(np.int64(s // 4) for s in a.strides[:2]) for a in (acc, row_sum))
    sizes = (np.int32(size) for size in (n, n_heads, d))
    given = acc, *next(strides), row_sum, *next(strides), out, row_stride(out), *sizes
    launch("finish", "finish", (ceil_div(n_heads * d, 128), min(n, 1024)), 128, given, options(out.dtype == np.float16))


def finish_packed(acc: Array, row_sum: Array, out: Array, n_heads: int) -> None:
    """`finish` of what `attend_packed` made; out (n, H d)."""
    n, width = out.shape
    sums = acc[: n * width].reshape(n, n_heads, width // n_heads).transpose(1, 0, 2)
    finish(sums, row_sum[: n * n_heads].reshape(n, n_heads).T, out)


def _split(x: Array, n_heads: int) -> Array:
    """(n, heads * d) -> (heads, n, d), a view."""
    return x.reshape(len(x), n_heads, x.shape[1] // n_heads).transpose(1, 0, 2)
