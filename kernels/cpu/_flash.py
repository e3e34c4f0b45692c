"""Online softmax attention with both products in bfloat16, scores in the cache from the first product to the second.

Per key head, keys and values are narrowed and packed once. Then, for a block of rows (queries of all heads that read
this key head) and a run of keys, one tile of scores is multiplied, biased, exponentiated and narrowed in place, and
multiplied with the values. Sums, maxima and weights are float32.
"""

from functools import cache

import llvmlite.binding
import numpy as np
from numba import njit

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu import _attention
from astra_mpi.kernels.cpu._flash_pack import narrow_row, numbers, pack_keys, pack_values
from astra_mpi.kernels.cpu._flash_rows import rows_max, rows_weights
from astra_mpi.kernels.cpu._math import FASTMATH, exp, f32
from astra_mpi.kernels.cpu._simd import dot_tile
from astra_mpi.kernels.near import Near

Array = np.ndarray
u32 = np.uint32

#: rows of a block (with two strips of 16 keys: 24 sums in registers) and of a tile; keys of a tile
BLOCK, TILE_ROWS, TILE_KEYS = 12, 192, 512
#: rows per key head below which packing keys and values costs more than it saves
FEW = 8

_tile = dot_tile("bfloat16", BLOCK)
_rows_max = rows_max(4)
_rows_weights = rows_weights(4)


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
    n_heads, n_queries, d_head = q.shape
    n_kv_heads, n_keys, _ = k.shape
    if q.size == 0 or n_keys == 0:
        return
    repeat = n_heads // n_kv_heads
    if repeat * n_queries < FEW or not usable():
        _attention.attend(q, k, v, key_bias, causal, acc, row_max, row_sum, near)
        return
    bias = np.full(_up(n_keys, 32), -np.inf, np.float32)  # hides the keys beyond the last
    bias[:n_keys] = 0 if key_bias is None else key_bias
    reach = n_keys if causal is None else causal  # query i sees key j when j <= i + reach
    cap, window, relative, query_places, key_places = _options(near, n_heads)
    tile_rows = min(TILE_ROWS, _up(repeat * n_queries, BLOCK))
    words, columns = _up(d_head, 2) // 2, _up(d_head, 32)
    work = np.empty(
        16 + bias.size * (words + columns // 2) + tile_rows * (words + columns + 3) + BLOCK * (TILE_KEYS + 16),
        np.uint32,
    )
    _attend(
        _place(q), _place(k), _place(v), (n_kv_heads, repeat, n_queries, n_keys, d_head),
        bias, key_bias is not None, reach, _place(acc), _place(row_max), _place(row_sum),
        cap, window, relative, query_places, key_places, work,
    )  # fmt: skip


def warm_up() -> None:
    """Compile `attend`, or load it from the cache on disk."""
    if usable():
        heads, state = np.ones((1, FEW, 2), np.float32), np.zeros((2, 1, FEW), np.float32)
        attend(heads, heads, heads, None, None, heads.copy(), *state)


@cache
def usable() -> bool:
    """Whether this CPU has the instructions; elsewhere `attend` is float32's."""
    try:
        found = llvmlite.binding.get_host_cpu_features()
    except RuntimeError:
        return False
    return all(found.get(name) for name in ("avx512bf16", "avx512bw", "avx512dq"))


def _up(n, unit):
    """The least multiple of unit that is not less than n."""
    return -(-n // unit) * unit


def _place(array):
    """Address and strides in bytes: what a kernel needs, of arrays of any layout."""
    return (array.__array_interface__["data"][0], *array.strides)


_NOTHING = np.zeros((1, 1), np.float32), np.zeros(1, np.int32)


def _options(near, n_heads):
    if near is None:
        return f32(0), 0, _NOTHING[0], _NOTHING[1], _NOTHING[1]
    if not near.placed:
        return f32(near.cap), 0, _NOTHING[0], _NOTHING[1], _NOTHING[1]
    relative = np.zeros((n_heads, 1), np.float32) if near.relative is None else np.ascontiguousarray(near.relative)
    places = (np.ascontiguousarray(places, np.int32) for places in (near.query_places, near.key_places))
    return f32(near.cap), near.window, relative, *places


@compiled(fastmath=FASTMATH, error_model="numpy")
def _attend(
    q, k, v, sizes, bias, biased, reach, acc, row_max, row_sum, cap, window, relative, query_places, key_places, work
):
    n_groups, repeat, n_queries, n_keys, d = sizes
    n_rows, padded = repeat * n_queries, bias.size
    words, columns = (d + 1) // 2, (d + 31) // 32 * 32
    tile_rows = min(TILE_ROWS, (n_rows + BLOCK - 1) // BLOCK * BLOCK)
    # parts of the workspace, those of vectors first and at multiples of 64 bytes
    at = (-work.ctypes.data // 4) % 16
    keys = work[at : at + padded * words].reshape(padded // 16, words, 16)
    at += keys.size
    values = work[at : at + padded // 2 * columns].reshape(columns // 16, padded // 2, 16)
    at += values.size
    scores = work[at : at + BLOCK * (TILE_KEYS + 16)].reshape(BLOCK, TILE_KEYS + 16).view(f32)
    at += scores.size
    sums = work[at : at + tile_rows * columns].reshape(tile_rows, columns).view(f32)
    at += sums.size
    queries = work[at : at + tile_rows * words].reshape(tile_rows, words)
    at += queries.size
    state = work[at : at + 3 * tile_rows].reshape(3, tile_rows).view(f32)  # maxima, those before, sums of weights
    for g in range(n_groups):
        pack_keys(k[0] + g * k[1], k[2], n_keys, d, queries[0], keys)
        pack_values(v[0] + g * v[1], v[2], n_keys, d, values)
        for first_row in range(0, n_rows, tile_rows):
            here = min(tile_rows, n_rows - first_row)
            for r in range(here):
                head, i = g * repeat + (first_row + r) % repeat, (first_row + r) // repeat
                narrow_row(q[0] + head * q[1] + i * q[2], d, queries[r])
                running = numbers(acc[0] + head * acc[1] + i * acc[2], d)
                for e in range(d):
                    sums[r, e] = running[e]
                sums[r, d:] = f32(0)
                state[0, r] = numbers(row_max[0] + head * row_max[1] + i * row_max[2], 1)[0]
                state[2, r] = numbers(row_sum[0] + head * row_sum[1] + i * row_sum[2], 1)[0]
            queries[here:] = u32(0)
            sums[here:] = f32(0)
            state[:, here:] = f32(0)
            for first_key in range(0, min(n_keys, (first_row + here - 1) // repeat + reach + 1), TILE_KEYS):
                for b in range(0, here, BLOCK):
                    rows = first_row + b, first_row + min(b + BLOCK, here)
                    begin, end = _span(rows, repeat, reach, n_keys, window, query_places, key_places)
                    begin, end = max(begin, first_key), min(end, first_key + TILE_KEYS)
                    if begin >= end:
                        continue
                    n_pairs = (end - begin + 31) // 32
                    _score(queries[b:], keys[begin // 16 :], n_pairs, scores)
                    if cap > 0 or window > 0 or relative.shape[1] > 1:
                        corner = g * repeat, first_row + b, begin
                        _adjust(scores, corner, min(32 * n_pairs, n_keys - begin), repeat, cap, window, relative,
                                query_places, key_places, n_queries)  # fmt: skip
                    _hide(scores, n_pairs, first_row + b, repeat, reach - begin)
                    _weigh(
                        scores, bias[begin:], biased or begin + 32 * n_pairs > n_keys, n_pairs, state[:, b:], sums[b:]
                    )
                    _gather(scores, values[:, begin // 2 :], n_pairs, sums[b:])
            for r in range(here):
                head, i = g * repeat + (first_row + r) % repeat, (first_row + r) // repeat
                running = numbers(acc[0] + head * acc[1] + i * acc[2], d)
                for e in range(d):
                    running[e] = sums[r, e]
                numbers(row_max[0] + head * row_max[1] + i * row_max[2], 1)[0] = state[0, r]
                numbers(row_sum[0] + head * row_sum[1] + i * row_sum[2], 1)[0] = state[2, r]


@njit
def _span(rows, repeat, reach, n_keys, window, query_places, key_places):
    """From the first to the last key that a row of rows[0] .. rows[1] - 1 sees; the first is made a multiple of 32."""
    first, last = rows[0] // repeat, (rows[1] - 1) // repeat
    end = min(n_keys, last + reach + 1)
    if window == 0 or end <= 0:
        return 0, end
    low, high = query_places[first], query_places[first]
    for i in range(first, last + 1):
        low, high = min(low, query_places[i]), max(high, query_places[i])
    places = key_places[:end]
    begin = np.searchsorted(places, low - window, "right") // 32 * 32
    return begin, np.searchsorted(places, high + window, "left")


@njit
def _score(queries, keys, n_pairs, scores):
    """scores (BLOCK, 32 n_pairs) = queries (BLOCK, w) @ strips of keys."""
    words = queries.shape[1]
    for j in range(n_pairs):
        strip = keys.ctypes.data + 128 * j * words
        out = scores.ctypes.data + 128 * j
        _tile(queries.ctypes.data, 4 * words, strip, 64 * words, out, 4 * scores.shape[1], words, 1)


@njit
def _gather(scores, values, n_pairs, sums):
    """sums (BLOCK, c) += weights (BLOCK, 32 n_pairs), which begin the rows of scores, @ strips of values."""
    strip_bytes = values.strides[0]
    for s in range(0, values.shape[0], 2):
        strip = values.ctypes.data + s * strip_bytes
        out = sums.ctypes.data + 64 * s
        stride = 4 * scores.shape[1]
        _tile(scores.ctypes.data, stride, strip, strip_bytes, out, 4 * sums.shape[1], 16 * n_pairs, 0)


@njit(fastmath=FASTMATH)
def _adjust(scores, corner, n, repeat, cap, window, relative, query_places, key_places, n_queries):
    """The first n scores of each row capped, biased by distance, and -inf beyond the window.

    corner: the first query head of the key head, the first row, and the first key.
    """
    scale = f32(2) / cap if cap > 0 else f32(0)
    most = relative.shape[1] // 2
    for r in range(BLOCK):
        row, head, i = scores[r], corner[0] + (corner[1] + r) % repeat, (corner[1] + r) // repeat
        if i >= n_queries:
            break
        if cap > 0:  # cap tanh(s / cap), with tanh u = 1 - 2 / (exp(2 u) + 1)
            for j in range(n):
                row[j] = cap - f32(2) * cap / (exp(min(row[j] * scale, f32(80))) + f32(1))
        if window > 0 or most > 0:
            keys, place, biases = key_places[corner[2] : corner[2] + n], query_places[i], relative[head]
            for j in range(n):
                distance = keys[j] - place
                if window > 0 and abs(distance) >= window:
                    row[j] = f32(-np.inf)
                elif most > 0:
                    row[j] += biases[min(max(distance, -most), most) + most]


@njit
def _hide(scores, n_pairs, first_row, repeat, reach):
    """-inf where a row's query does not see a key."""
    for r in range(BLOCK):
        n_seen = (first_row + r) // repeat + reach + 1
        if n_seen < 32 * n_pairs:
            scores[r, max(0, n_seen) : 32 * n_pairs] = f32(-np.inf)


@njit(fastmath=FASTMATH)
def _weigh(scores, bias, biased, n_pairs, state, sums):
    """Scores of a block -> weights; maxima, sums of weights and sums follow the new maxima."""
    stride = 4 * scores.shape[1]
    for r in range(0, BLOCK, 4):
        for i in range(r, r + 4):
            state[1, i] = state[0, i]
        row, maxima = scores.ctypes.data + r * stride, state[0].ctypes.data + 4 * r
        _rows_max(row, stride, bias.ctypes.data, biased, n_pairs, maxima)
        for i in range(r, r + 4):
            if state[0, i] > state[1, i]:
                decay = exp(state[1, i] - state[0, i]) if state[1, i] - state[0, i] > f32(-87) else f32(0)
                state[2, i] *= decay
                for e in range(sums.shape[1]):
                    sums[i, e] *= decay
        _rows_weights(row, stride, n_pairs, maxima, state[2].ctypes.data + 4 * r)
