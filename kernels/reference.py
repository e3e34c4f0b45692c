"""Every kernel in plain NumPy: the specification the other backends are tested against.

Symbols: n tokens, D model width, C codes per token (G groups or M stages), K codes per codebook, W width of an entry,
E width of a table row, H query heads, Hkv key/value heads, a queries, m keys, d head width.
"""

import math

import numpy as np

from astra_mpi.kernels.blocks import multiply_blocks, quantise_rows, times_blocks, widen_blocks  # noqa: F401
from astra_mpi.kernels.near import Near

Array = np.ndarray

_erf = np.vectorize(math.erf, otypes=[np.float64])


def code_dtype(n_codes: int) -> type[np.unsignedinteger]:
    """The integer type that holds a code of a codebook of `n_codes` entries."""
    return np.uint8 if n_codes <= 256 else np.uint16


def _nearest(vector: Array, entries: Array) -> np.intp:
    """Index of the entry (K, W) nearest to the vector (W,); argmin takes the first, so the lowest index on a tie."""
    return np.argmin(((entries.astype(np.float64) - vector.astype(np.float64)) ** 2).sum(axis=1))


def encode_grouped(x: Array, entries: Array, half_norms: Array) -> Array:
    """Codes (n, G) of x (n, G*W): code[i, g] = argmin_k ||entries[g, k] - x[i, g*W:(g+1)*W]||^2, lowest on a tie.

    entries (G, K, W) float32; half_norms (G, K) = ||entry||^2 / 2, from which the fast backends start and which the
    definition does not need. Codes are uint8 when K <= 256, else uint16. Entries do not change while their array lives:
    backends keep what they make of them.
    """
    n_groups, n_codes, width = entries.shape
    codes = np.empty((len(x), n_groups), code_dtype(n_codes))
    for i, row in enumerate(x):
        for g in range(n_groups):
            codes[i, g] = _nearest(row[g * width : (g + 1) * width], entries[g])
    return codes


def encode_residual(x: Array, entries: Array, half_norms: Array) -> Array:
    """Codes (n, M) of x (n, W): stage m quantises what stages 0..m-1 left, in float32.

    r_0 = x; code[i, m] = argmin_k ||entries[m, k] - r_m[i]||^2; r_{m+1} = r_m - entries[m, code]. entries (M, K, W),
    half_norms (M, K) as in encode_grouped.
    """
    n_stages, n_codes, _ = entries.shape
    codes = np.empty((len(x), n_stages), code_dtype(n_codes))
    for i, row in enumerate(x):
        residual = row
        for m in range(n_stages):
            codes[i, m] = _nearest(residual, entries[m])
            residual = residual - entries[m, codes[i, m]]
    return codes


def encode_levels(x: Array, levels: Array) -> Array:
    """Codes (n, C) of x (n, C): code[i, c] = argmin_k |levels[c, k] - x[i, c]|, lowest on a tie.

    levels (C, K) float32, every row ascending; where a row has fewer, its last one is repeated.
    """
    codes = np.empty(x.shape, code_dtype(levels.shape[1]))
    for c, row in enumerate(levels.astype(np.float64)):
        codes[:, c] = np.argmin(np.abs(row - x[:, c].astype(np.float64)[:, None]), axis=1)
    return codes


def decode_grouped(codes: Array, entries: Array) -> Array:
    """The (n, G*W) vectors that codes (n, G) stand for: the entries (G, K, W) of a token, side by side."""
    n_groups, _, width = entries.shape
    return entries[np.arange(n_groups), codes].reshape(len(codes), n_groups * width)


def decode_residual(codes: Array, entries: Array) -> Array:
    """The (n, W) vectors that codes (n, M) stand for: the sum of a token's entries (M, K, W), in stage order."""
    return table_sum(codes, entries, None, None)


def pack(codes: Array, bits: int) -> Array:
    """Message uint8 (ceil(n*C*bits/8),): the low `bits` (0..16) of every code (n, C), least significant bit first.

    Code i occupies bits i*bits to (i+1)*bits - 1 of the message; bit j of the message is bit j % 8 of byte j // 8.
    """
    octets = codes.astype("<u2").reshape(-1, 1).view(np.uint8)  # (n*C, 2)
    return np.packbits(np.unpackbits(octets, axis=1, bitorder="little")[:, :bits], bitorder="little")


def unpack(message: Array, n: int, C: int, bits: int) -> Array:
    """Codes (n, C) from pack's message: uint8 when bits <= 8, else uint16. ValueError if the length is wrong."""
    n_codes = n * C
    check_message(message, n_codes, bits)
    flags = np.zeros((n_codes, 16), np.uint8)
    flags[:, :bits] = np.unpackbits(message, bitorder="little")[: n_codes * bits].reshape(n_codes, bits)
    codes = np.packbits(flags, axis=1, bitorder="little").view("<u2")  # (n*C, 1)
    return codes.reshape(n, C).astype(code_dtype(1 << bits))


def pack_columns(codes: Array, bits: Array) -> Array:
    """Message uint8 (ceil(n * sum(bits) / 8),): the low bits[c] (1..16) of every code (n, C), token after token.

    Least significant bit first, as in `pack`.
    """
    columns, places = bit_places(bits)
    return pack((codes[:, columns] >> places.astype(codes.dtype)) & codes.dtype.type(1), 1)


def unpack_columns(message: Array, n: int, bits: Array) -> Array:
    """Codes (n, C) from pack_columns' message: uint8 when no bits > 8, else uint16. ValueError on a wrong length."""
    columns, places = bit_places(bits)
    flags = unpack(message, n, len(columns), 1).astype(np.uint16) << places
    firsts = np.flatnonzero(places == 0)
    return np.add.reduceat(flags, firsts, axis=1).astype(code_dtype(1 << int(max(bits))))


def bit_places(bits: Array) -> tuple[Array, Array]:
    """For every bit of a token whose code c has bits[c]: its code, and its place in that, both (sum(bits),) int64."""
    bits = np.asarray(bits, np.int64)
    columns = np.repeat(np.arange(len(bits)), bits)
    return columns, np.arange(len(columns)) - (np.cumsum(bits) - bits)[columns]


def check_message(message: Array, n_codes: int, bits: int) -> None:
    """ValueError unless the message has the length of `n_codes` codes of `bits` bits."""
    expected = (n_codes * bits + 7) // 8
    if message.size != expected:
        raise ValueError(f"a message of {n_codes} codes of {bits} bits has {expected} bytes, not {message.size}")


def table_sum(codes: Array, tables: Array, scale: Array | None, bias: Array | None) -> Array:
    """(n, E): scale[i] * sum_c tables[c, codes[i, c]] + bias.

    codes (n, C), tables (C, K, E) float32 or uint16 (bfloat16), scale (n,) or None (1), bias (E,) or None (0).
    """
    total = np.zeros((len(codes), tables.shape[2]), np.float32)
    for c, table in enumerate(tables):
        rows = table[codes[:, c]]
        total += _wide(rows) if rows.dtype == np.uint16 else rows
    if scale is not None:
        total *= scale[:, None]
    if bias is not None:
        total += bias
    return total


def gram_sum(codes: Array, gram: Array) -> Array:
    """(n,) float64: sum_ij gram[i, j, codes[:, i], codes[:, j]], the squared norm of a sum of entries.

    codes (n, C), gram (C, C, K, K) float32 with gram[i, j, k, l] = gram[j, i, l, k].
    """
    stages = np.arange(codes.shape[1])
    pairs = gram[stages[:, None], stages, codes[:, :, None], codes[:, None, :]]  # (n, C, C)
    return pairs.astype(np.float64).sum(axis=(1, 2))


def count_codes(codes: Array, K: int) -> Array:
    """counts (K,) int64: how many of the codes (n, 1) are k."""
    return np.bincount(codes.ravel(), minlength=K).astype(np.int64)


def dense(
    x: Array, weight: Array, out: Array, bias: Array | None = None, activation: str = "", add: bool = False
) -> Array:
    """out (m, n) = act(x (m, k) @ weight (k, n) + bias (n,)), added to what is there if `add`, and returned.

    out may be row-strided; activation: "", or one of `activate`.
    """
    made = x @ weight
    if activation:
        activate(made, bias, activation)
    elif bias is not None:
        made += bias
    out[...] = out + made if add else made
    return out


def ordered_product(x: Array, weight: Array, out: Array) -> Array:
    """out (n, m) float32 = x (n, k) @ weight (k, m), the terms added in order of k, each step rounded once.

    So a row is the same number for number, whatever the other rows are.
    """
    out[...] = 0
    for column, row in zip(x.T.astype(np.float64), weight, strict=True):
        out[...] = column[:, None] * row + out
    return out


def code_sums(x: Array, codes: Array, K: int) -> Array:
    """(K, W) float32: the sum of the rows of x (n, W) that have each code (n,), added in order; 0 where none has it."""
    sums = np.zeros((K, x.shape[1]), np.float32)
    np.add.at(sums, codes, x)
    return sums


def add_entries(x: Array, entries: Array, codes: Array) -> Array:
    """x (n, W) float32, in place: x[i] += entries[codes[i]], for entries (K, W) and codes (n,)."""
    x += entries[codes]
    return x


def segment_sum(x: Array, starts: Array) -> Array:
    """(m, D) float32: sums of the rows starts[i] .. starts[i + 1] - 1 of x (n, D), of the last one to the end.

    starts (m,) int64, ascending without repeats, from 0; n >= 1.
    """
    return np.add.reduceat(x, starts, axis=0, dtype=np.float32)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float, out: Array | None = None) -> Array:
    """(n, D): (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias, means over the last axis of x (n, D)."""
    x64 = x.astype(np.float64)
    centred = x64 - x64.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1, keepdims=True)
    return _into(out, centred / np.sqrt(variance + eps) * weight + bias)


def rms_norm(x: Array, weight: Array, eps: float, out: Array | None = None) -> Array:
    """(n, D): x / sqrt(mean(x^2) + eps) * weight, the mean over the last axis of x (n, D)."""
    x64 = x.astype(np.float64)
    return _into(out, x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + eps) * weight)


def widen(values: Array, scale: Array | None, first: int, out: Array) -> Array:
    """out (m, w) = columns first .. first + w of values (m, n), as float32, times scale (n,), in place and returned.

    values: float16, int8, or uint16, which is bfloat16: the upper half of a float32. C-contiguous. scale None: 1.
    """
    columns = slice(first, first + out.shape[1])
    out[...] = _wide(values[:, columns]) * (1 if scale is None else scale[columns])
    return out


def vecmat(x: Array, values: Array, scale: Array | None, out: Array) -> Array:
    """out (n,) = x (m,) @ values (m, n), times scale (n,), in place and returned; values and scale as in `widen`."""
    out[...] = x @ _wide(values) * (1 if scale is None else scale)
    return out


def matvec(values: Array, scale: Array | None, x: Array, out: Array) -> Array:
    """out (m,) = values (m, n) @ x (n,), times scale (m,), in place and returned; values and scale as in `widen`."""
    out[...] = _wide(values) @ x * (1 if scale is None else scale)
    return out


def _wide(values: Array) -> Array:
    """Stored numbers as float64."""
    if values.dtype == np.uint16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def _into(out: Array | None, values: Array) -> Array:
    if out is None:
        return values.astype(np.float32)
    out[...] = values
    return out


def add_residual(x: Array, y: Array, bias: Array | None) -> Array:
    """x (n, D) += y (n, D) + bias (D,), in place and returned."""
    x[...] = x.astype(np.float64) + y + (0 if bias is None else bias)
    return x


def scale_add(x: Array, scale: Array, bias: Array) -> Array:
    """x (n, D) = x * scale (D,) + bias (D,), in place and returned."""
    x[...] = x.astype(np.float64) * scale + bias
    return x


def add_layer_norm(
    x: Array, y: Array, bias: Array | None, weight: Array, norm_bias: Array, eps: float, out: Array
) -> Array:
    """x (n, D) += y + bias in place; out = layer_norm(x), returned. `out` may be y, not x."""
    return layer_norm(add_residual(x, y, bias), weight, norm_bias, eps, out)


def add_rms_norm(x: Array, y: Array, bias: Array | None, weight: Array, eps: float, out: Array) -> Array:
    """x (n, D) += y + bias in place; out = rms_norm(x), returned. `out` may be y, not x."""
    return rms_norm(add_residual(x, y, bias), weight, eps, out)


def rotate(x: Array, turns: Array, n_heads: int) -> Array:
    """Turn the first `n_heads` heads of x (n, W) by each row's angles, in place and returned (RoPE, arXiv 2104.09864).

    turns (n, d): cosines of d / 2 angles, then their sines. A head's numbers a = 0 .. d/2 - 1 make a pair with those
    d / 2 further: (u, v) -> (u cos - v sin, v cos + u sin).
    """
    d_half, width = turns.shape[1] // 2, n_heads * turns.shape[1]
    heads = x[:, :width].reshape(len(x), n_heads, 2, d_half)
    u, v = heads[:, :, 0].astype(np.float64), heads[:, :, 1].astype(np.float64)
    cos, sin = turns[:, None, :d_half], turns[:, None, d_half:]
    x[:, :width] = np.stack([u * cos - v * sin, v * cos + u * sin], axis=2).reshape(len(x), width)
    return x


def activate(x: Array, bias: Array | None, name: str) -> Array:
    """x = act(x + bias), in place and returned; x (n, F), bias (F,) or None.

    gelu: x * Phi(x), Phi the normal distribution function; gelu_tanh: its tanh form (arXiv 1606.08415);
    relu: max(x, 0); silu: x / (1 + exp(-x)); quick_gelu: x / (1 + exp(-1.702 x)). ValueError for another name.
    """
    y = x.astype(np.float64) if bias is None else x.astype(np.float64) + bias
    if name == "gelu":
        x[...] = 0.5 * y * (1 + _erf(y / math.sqrt(2))) if y.size else y
    elif name == "gelu_tanh":
        x[...] = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    elif name == "relu":
        x[...] = np.maximum(y, 0)
    elif name == "silu":
        x[...] = y * 0.5 * (1 + np.tanh(y / 2))
    elif name == "quick_gelu":
        x[...] = y * 0.5 * (1 + np.tanh(1.702 * y / 2))
    else:
        raise ValueError(f"unknown activation {name!r}")
    return x


def activate_gated(x: Array, bias: Array | None, gate: Array, gate_bias: Array | None, name: str) -> Array:
    """x = (x + bias) * act(gate + gate_bias), in place and returned; x, gate (n, F), biases (F,) or None.

    What becomes of `gate` is not defined. With silu this is SwiGLU (arXiv 2002.05202).
    """
    x[...] = (x.astype(np.float64) + (0 if bias is None else bias)) * activate(gate.copy(), gate_bias, name)
    return x


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


def warm_up() -> None:
    """Nothing: plain NumPy has nothing to compile."""
