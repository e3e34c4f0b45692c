"""Kernels on codes and sums of rows in plain NumPy; see `reference`."""

import numpy as np

Array = np.ndarray


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
        total += wide(rows) if rows.dtype == np.uint16 else rows
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


def wide(values: Array) -> Array:
    """Stored numbers as float64."""
    if values.dtype == np.uint16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)
