"""Online softmax attention: BLAS for both products, one Numba pass over the scores between them."""

import numpy as np
from numba import njit

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels._cpu_math import FASTMATH, exp, f32, from_ordered_bits, i32, ordered_bits
from astra_mpi.kernels.near import Near

Array = np.ndarray

#: Queries and keys of a tile, and scores of a batch of tiles (512 KiB), so that the scores stay in the cache.
TILE_QUERIES, TILE_KEYS, TILE = 256, 512, 1 << 17


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
    q = q.reshape(n_kv_heads, repeat, n_queries, d_head)
    key_bias = np.zeros(n_keys, np.float32) if key_bias is None else np.ascontiguousarray(key_bias)
    reach = n_keys if causal is None else causal  # query i sees key j when j <= i + reach
    tile_queries = min(n_queries, max(16, TILE_QUERIES // repeat))
    tile_keys = min(n_keys, max(TILE_KEYS, TILE // (tile_queries * repeat)))
    tile_heads = max(1, TILE // (repeat * tile_queries * tile_keys))
    for heads in _slices(n_kv_heads, tile_heads, 1):
        for rows in _slices(n_queries, tile_queries, 16):
            first, last = _span(near, rows, min(n_keys, rows.stop + reach))
            for part in _slices(last - first, tile_keys, 16):
                keys = slice(first + part.start, first + part.stop)
                _attend_tile(q, k, v, key_bias, reach, acc, row_max, row_sum, heads, rows, keys, near)


def _span(near, rows, n_seen):
    """The keys, of the first n_seen, that lie in the window of any query of a slice, from the first to the last."""
    if near is None or not near.window:
        return 0, n_seen
    places, queries = near.key_places[:n_seen], near.query_places[rows]
    low, high = int(queries.min()) - near.window, int(queries.max()) + near.window
    return int(np.searchsorted(places, low, "right")), int(np.searchsorted(places, high, "left"))


def _slices(n, size, unit):
    """range(n) in slices of about `size` cut at multiples of `unit`; none is a mere remainder."""
    if n <= 0:
        return []
    count = max(1, round(n / size))
    bounds = [i * n // count // unit * unit for i in range(count)]
    return [slice(start, stop) for start, stop in zip(bounds, [*bounds[1:], n], strict=True)]


def _attend_tile(q, k, v, key_bias, reach, acc, row_max, row_sum, heads, rows, keys, near):
    """`attend` for the key/value heads, queries and keys of three slices; q (Hkv, repeat, a, d)."""
    repeat, d_head = q.shape[1], q.shape[3]
    scores = q[heads, :, rows] @ k[heads, None, keys].swapaxes(2, 3)  # (h, repeat, a, m)
    flat = scores.reshape(-1, *scores.shape[2:])  # (h * repeat, a, m)
    first = (heads.start * repeat, rows.start, keys.start)
    if near is not None:
        _adjust(flat, near, first)
    _softmax_step(flat, key_bias, rows.start + reach - keys.start, first, acc, row_max, row_sum)
    sums = scores @ v[heads, None, keys]  # (h, repeat, a, d)
    acc[heads.start * repeat : heads.stop * repeat, rows] += sums.reshape(-1, sums.shape[2], d_head)


def _adjust(scores, near, first):
    """Scores (h, a, m) of a tile as `near` says, in place; first: head, query and key of the tile's corner."""
    if near.cap:
        _cap(scores, f32(near.cap))
    if near.placed:
        (n_heads, n_queries, n_keys), (head, query, key) = scores.shape, first
        relative = near.relative
        biases = np.zeros((n_heads, 1), np.float32) if relative is None else relative[head : head + n_heads]
        queries, keys = near.query_places[query : query + n_queries], near.key_places[key : key + n_keys]
        _by_distance(scores, np.ascontiguousarray(biases), i32(near.window), queries, keys)


@compiled(fastmath=FASTMATH, error_model="numpy")
def _cap(scores, cap):
    """s -> cap tanh(s / cap), with tanh u = 1 - 2 / (exp(2 u) + 1)."""
    n_heads, n_queries, n_keys = scores.shape
    scale = f32(2) / cap
    for h in range(n_heads):
        for i in range(n_queries):
            row = scores[h, i]
            for j in range(n_keys):
                row[j] = cap - f32(2) * cap / (exp(min(row[j] * scale, f32(80))) + f32(1))


@compiled(fastmath=FASTMATH, error_model="numpy")
def _by_distance(scores, biases, window, queries, keys):
    """Adds biases (h, 2 R + 1), and hides keys that are not nearer than `window`, unless that is 0."""
    n_heads, n_queries, n_keys = scores.shape
    most = biases.shape[1] // 2
    for h in range(n_heads):
        for i in range(n_queries):
            row, place = scores[h, i], queries[i]
            for j in range(n_keys):
                distance = keys[j] - place
                if window and abs(distance) >= window:
                    row[j] = f32(-np.inf)
                elif most:
                    row[j] += biases[h, min(max(distance, -most), most) + most]


@compiled(fastmath=FASTMATH, error_model="numpy")
def _softmax_step(scores, key_bias, reach, first, acc, row_max, row_sum):
    """scores (h, a, m) -> exp(scores + key_bias - new maximum); acc, row_max and row_sum follow the new maximum.

    Query i of the tile sees key j of the tile when j <= i + reach. first: head, query and key of the tile's corner.
    """
    n_heads, n_queries, n_keys = scores.shape
    bias = key_bias[first[2] : first[2] + n_keys]
    for h in range(n_heads):
        for i in range(n_queries):
            head, query = first[0] + h, first[1] + i
            n_seen = min(n_keys, max(0, i + reach + 1))
            seen = scores[h, i, :n_seen]
            highest = ordered_bits(-np.inf)
            for j in range(n_seen):
                seen[j] += bias[j]
                highest = i32(max(highest, ordered_bits(seen[j])))
            scores[h, i, n_seen:] = 0
            old_max = row_max[head, query]
            new_max = max(old_max, from_ordered_bits(highest))
            if new_max == -np.inf:
                seen[:] = 0
                continue
            total = f32(0)
            for j in range(n_seen):
                seen[j] = _weight(seen[j] - new_max)
                total += seen[j]
            if new_max > old_max:
                decay = _weight(old_max - new_max)
                row_sum[head, query] *= decay
                for e in range(acc.shape[2]):
                    acc[head, query, e] *= decay
            row_sum[head, query] += total
            row_max[head, query] = new_max


@njit(fastmath=FASTMATH)
def _weight(x):
    """e^x for x <= 0, and exactly 0 for -inf: a hidden key weighs nothing."""
    return exp(x) if x > f32(-87) else f32(0)


def attend_codes(
    key_codes: Array,
    parts: Array,
    value_codes: Array,
    scale: Array | None,
    offset: Array,
    row_max: Array,
    row_sum: Array,
) -> Array:
    """Weights (C', K', H) that codes gather in a softmax over keys known by their codes; see reference.attend_codes."""
    n_keys = len(key_codes)
    scale = np.ones(n_keys, np.float32) if scale is None else scale
    wide = np.ascontiguousarray(key_codes, np.uint16)
    values = wide if value_codes is key_codes else np.ascontiguousarray(value_codes, np.uint16)
    weights = np.zeros((values.shape[1], *parts.shape[1:]), np.float32)
    scores = np.empty((n_keys, parts.shape[2]), np.float32)
    _attend_codes(wide, parts, values, scale, offset, scores, weights, row_max, row_sum)
    return weights


@compiled(fastmath=FASTMATH, error_model="numpy")
def _attend_codes(key_codes, parts, value_codes, scale, offset, scores, weights, row_max, row_sum):
    n_keys, n_codes = key_codes.shape
    n_heads = parts.shape[2]
    row_max[:] = f32(-np.inf)
    row_sum[:] = f32(0)
    for j in range(n_keys):
        score = scores[j]
        score[:] = f32(0)
        for c in range(n_codes):
            part = parts[c, key_codes[j, c]]
            for h in range(n_heads):
                score[h] += part[h]
        for h in range(n_heads):
            score[h] = score[h] * scale[j] + offset[h]
            row_max[h] = max(row_max[h], score[h])
    for j in range(n_keys):
        score = scores[j]
        for h in range(n_heads):
            share = _weight(score[h] - row_max[h])
            row_sum[h] += share
            score[h] = share * scale[j]
        for c in range(value_codes.shape[1]):
            gathered = weights[c, value_codes[j, c]]
            for h in range(n_heads):
                gathered[h] += score[h]


def attend_rows(
    q: Array, table: Array, rows: Array, key_bias: Array, acc: Array, row_max: Array, row_sum: Array
) -> None:
    """One query per head over rows of a table, in place; see reference.attend_rows."""
    scores = np.empty((len(rows), q.shape[0] * q.shape[1]), np.float32)
    _attend_rows(np.ascontiguousarray(q), table, rows, key_bias, scores, acc, row_max, row_sum)


@compiled(fastmath=FASTMATH, error_model="numpy")
def _attend_rows(q, table, rows, key_bias, scores, acc, row_max, row_sum):
    h_kv, repeat, d = q.shape
    for j in range(rows.size):
        key = table[rows[j]]
        for h in range(h_kv):
            for r in range(repeat):
                score = f32(0)
                for e in range(d):
                    score += key[h * d + e] * q[h, r, e]
                scores[j, h * repeat + r] = score + key_bias[j]
    for h in range(h_kv):
        for r in range(repeat):
            highest = row_max[h, r]
            for j in range(rows.size):
                highest = max(highest, scores[j, h * repeat + r])
            if highest > row_max[h, r]:
                decay = _weight(row_max[h, r] - highest)
                row_sum[h, r] *= decay
                for e in range(d):
                    acc[h, r, e] *= decay
                row_max[h, r] = highest
    for j in range(rows.size):
        value = table[rows[j], h_kv * d :]
        for h in range(h_kv):
            for r in range(repeat):
                share = _weight(scores[j, h * repeat + r] - row_max[h, r])
                row_sum[h, r] += share
                for e in range(d):
                    acc[h, r, e] += share * value[h * d + e]
