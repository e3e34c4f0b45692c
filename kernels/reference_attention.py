"""Attention in plain NumPy; see `reference`."""

import numpy as np

from astra_mpi.kernels.near import Near

Array = np.ndarray


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
    *,
    begins: bool = False,
    out: Array | None = None,
) -> None:
    """One step of online softmax over the keys k, v (Hkv, m, d), in place.

    With s = q k^T + key_bias and M = max(row_max, max_j s_j):
        acc     <- exp(row_max - M) * acc     + sum_j exp(s_j - M) v_j
        row_sum <- exp(row_max - M) * row_sum + sum_j exp(s_j - M)
        row_max <- M
    so any split of the keys into steps, in any order, gives the softmax over all of them (the log-sum-exp merge).

    q (H, a, d) is already scaled by 1 / sqrt(d); query head h reads key head h // (H // Hkv). key_bias (m,) or None;
    -inf hides a key. With `causal`, query i sees key j when j <= i + causal. acc (H, a, d), row_max and row_sum (H, a)
    start as 0, -inf and 0; rows that see no key are left as they are. near: see `Near`.

    begins: this is the first step, whatever acc, row_max and row_sum hold. out (a, H*d): this is the last step, and
    what `finish` gives goes there; what acc, row_max and row_sum hold then is not said.
    """
    if begins:
        acc[...], row_max[...], row_sum[...] = 0, -np.inf, 0
    n_heads, n_queries, _ = q.shape
    n_keys = k.shape[1]
    repeat = n_heads // k.shape[0]
    scores = q @ np.repeat(k, repeat, axis=0).swapaxes(1, 2)  # (H, a, m)
    if near is not None:
        scores = _near(scores, near)
    if key_bias is not None:
        scores = scores + key_bias
    if causal is not None:
        visible = np.arange(n_keys) <= np.arange(n_queries)[:, None] + causal
        scores = np.where(visible, scores, np.float32(-np.inf))
    new_max = np.maximum(row_max, scores.max(axis=2, initial=-np.inf))
    finite_max = np.where(np.isneginf(new_max), np.float32(0), new_max)  # -inf - -inf would be NaN
    decay = np.exp(row_max - finite_max)
    weights = np.exp(scores - finite_max[:, :, None])
    acc *= decay[:, :, None]
    acc += weights @ np.repeat(v, repeat, axis=0)
    row_sum *= decay
    row_sum += weights.sum(axis=2)
    row_max[...] = new_max
    if out is not None:
        finish(acc, row_sum, out)


def _near(scores: Array, near: Near) -> Array:
    """Scores (H, a, m) capped, biased by distance, and -inf beyond the window."""
    if near.cap:
        scores = (near.cap * np.tanh(scores.astype(np.float64) / near.cap)).astype(np.float32)
    if not near.placed:
        return scores
    distance = near.key_places[None, :].astype(np.int64) - near.query_places[:, None]  # (a, m)
    if near.relative is not None:
        most = near.relative.shape[1] // 2
        scores = scores + near.relative[:, np.clip(distance, -most, most) + most]
    return np.where(abs(distance) < near.window, scores, np.float32(-np.inf)) if near.window else scores


def attend_codes(
    key_codes: Array,
    parts: Array,
    value_codes: Array,
    scale: Array | None,
    offset: Array,
    row_max: Array,
    row_sum: Array,
) -> Array:
    """A softmax over m >= 1 keys known by their codes -> weights (C', K', H) that each code of the values gathers.

    Key j has in head h the score s = scale[j] * sum_c parts[c, key_codes[j, c], h] + offset[h]; key_codes (m, C),
    parts (C, K, H), scale (m,) or None (ones), offset (H,). row_max and row_sum (H,) are set to max_j s and
    sum_j exp(s - row_max). weights[c, k, h] = sum of scale[j] * exp(s - row_max[h]) over the j with
    value_codes[j, c] = k; value_codes (m, C') are of codebooks as large as those of the keys.
    """
    n_keys, n_codes = key_codes.shape
    scale = np.ones(n_keys, np.float32) if scale is None else scale
    scores = parts[np.arange(n_codes), key_codes].sum(axis=1) * scale[:, None] + offset  # (m, H)
    row_max[...] = scores.max(axis=0)
    shares = np.exp(scores - row_max)
    row_sum[...] = shares.sum(axis=0)
    weights = np.zeros((value_codes.shape[1], *parts.shape[1:]), np.float32)
    for c in range(value_codes.shape[1]):
        np.add.at(weights[c], value_codes[:, c], shares * scale[:, None])
    return weights


def attend_rows(
    q: Array, table: Array, rows: Array, key_bias: Array, acc: Array, row_max: Array, row_sum: Array
) -> None:
    """`attend` for one query per head, whose keys are rows of a table that others share, in place.

    q (Hkv, r, d) scaled: the r query heads that read each key head. table (K, 2 Hkv d): [key | value] of all heads side
    by side; rows (m,) int64, key_bias (m,). acc (Hkv, r, d), row_max and row_sum (Hkv, r).
    """
    h_kv, _, d = q.shape
    keys, values = table[rows].reshape(len(rows), 2, h_kv, d).transpose(1, 2, 0, 3)  # (2, Hkv, m, d)
    attend(q, keys, values, key_bias, None, acc, row_max, row_sum)


def finish(acc: Array, row_sum: Array, out: Array) -> None:
    """out (a, H*d) = acc (H, a, d) / row_sum (H, a), heads side by side; 0 where row_sum is 0. out may be strided."""
    n_heads, n_queries, d_head = acc.shape
    inverse = np.divide(1, row_sum, out=np.zeros_like(row_sum), where=row_sum > 0)  # (H, a)
    heads = out.reshape(n_queries, n_heads, d_head)  # a view: only the contiguous last axis is split
    np.multiply(acc.swapaxes(0, 1), inverse.T[:, :, None], out=heads)
