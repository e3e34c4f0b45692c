"""What is done with codes: wire packing, decoding, table sums."""

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._math import FASTMATH
from astra_mpi.kernels.cpu._memory import ask
from astra_mpi.kernels.cpu._weights import number
from astra_mpi.kernels.reference import check_message, code_dtype

Array = np.ndarray


def pack(codes: Array, bits: int) -> Array:
    """Message uint8 (ceil(n*C*bits/8),) of codes (n, C); see reference.pack."""
    if bits == 8:
        return codes.astype(np.uint8).reshape(-1)
    return pack_columns(codes.reshape(-1, 1), np.array([bits]))


def unpack(message: Array, n: int, C: int, bits: int) -> Array:
    """Codes (n, C) from pack's message; see reference.unpack."""
    if bits == 8:
        check_message(message, n * C, 8)
        return message.reshape(n, C).copy()
    return unpack_columns(message, n * C, np.array([bits])).reshape(n, C)


def pack_columns(codes: Array, bits: Array) -> Array:
    """Message uint8 (ceil(n * sum(bits) / 8),) of codes (n, C) of bits (C,); see reference.pack_columns."""
    bits = np.asarray(bits, np.int64)
    message = np.empty((len(codes) * int(bits.sum()) + 7) // 8, np.uint8)
    _pack_columns(_wide(codes), bits, message)
    return message


def unpack_columns(message: Array, n: int, bits: Array) -> Array:
    """Codes (n, C) from pack_columns' message; see reference.unpack_columns."""
    bits = np.asarray(bits, np.int64)
    check_message(message, n, int(bits.sum()))
    codes = np.empty((n, len(bits)), np.uint16)
    _unpack_columns(message, bits, codes)
    return codes.astype(code_dtype(1 << int(bits.max(initial=0))), copy=False)


def decode_grouped(codes: Array, entries: Array) -> Array:
    """(n, G*W) from codes (n, G) and entries (G, K, W); see reference.decode_grouped."""
    n_groups, _, width = entries.shape
    out = np.empty((len(codes), n_groups * width), np.float32)
    _gather(_wide(codes), entries, out)
    return out


def decode_residual(codes: Array, entries: Array) -> Array:
    """(n, W) from codes (n, M) and entries (M, K, W); see reference.decode_residual."""
    return table_sum(codes, entries, None, None)


def table_sum(codes: Array, tables: Array, scale: Array | None, bias: Array | None) -> Array:
    """(n, E): scale[i] * sum_c tables[c, codes[i, c]] + bias; see reference.table_sum."""
    n, width = len(codes), tables.shape[2]
    plain = scale is None and bias is None
    scale = np.ones(n, np.float32) if scale is None else np.ascontiguousarray(scale)
    bias = np.zeros(width, np.float32) if bias is None else np.ascontiguousarray(bias)
    out = np.empty((n, width), np.float32)
    _table_sum(_wide(codes), tables, plain, scale, bias, out)
    return out


def gram_sum(codes: Array, gram: Array) -> Array:
    """(n,) float64: sum_ij gram[i, j, codes[:, i], codes[:, j]]; see reference.gram_sum."""
    out = np.empty(len(codes), np.float64)
    _gram_sum(_wide(codes), gram, out)
    return out


def code_sums(x: Array, codes: Array, K: int) -> Array:
    """(K, W): the sum of the rows of x (n, W) that have each code (n,), added in order; see reference.code_sums."""
    sums = np.zeros((K, x.shape[1]), np.float32)
    _code_sums(np.ascontiguousarray(x), _wide(codes), sums)
    return sums


def add_entries(x: Array, entries: Array, codes: Array) -> Array:
    """x (n, W) contiguous, in place: x[i] += entries[codes[i]]; see reference.add_entries."""
    _add_entries(x, entries, _wide(codes))
    return x


def _wide(codes):
    """The codes as contiguous uint16, so that every kernel is compiled once; they are few beside what they select."""
    return np.ascontiguousarray(codes, np.uint16)


@compiled()
def _pack_columns(codes, bits, message):
    pending, n_pending, position = np.uint64(0), 0, 0
    for i in range(codes.shape[0]):
        for c in range(codes.shape[1]):
            mask = (np.uint64(1) << np.uint64(bits[c])) - np.uint64(1)
            pending |= (np.uint64(codes[i, c]) & mask) << np.uint64(n_pending)
            n_pending += bits[c]
            while n_pending >= 8:
                message[position] = pending & np.uint64(0xFF)
                pending >>= np.uint64(8)
                n_pending -= 8
                position += 1
    if n_pending > 0:
        message[position] = pending


@compiled()
def _unpack_columns(message, bits, codes):
    pending, n_pending, position = np.uint64(0), 0, 0
    for i in range(codes.shape[0]):
        for c in range(codes.shape[1]):
            while n_pending < bits[c]:
                pending |= np.uint64(message[position]) << np.uint64(n_pending)
                n_pending += 8
                position += 1
            codes[i, c] = pending & ((np.uint64(1) << np.uint64(bits[c])) - np.uint64(1))
            pending >>= np.uint64(bits[c])
            n_pending -= bits[c]


@compiled()
def _gather(codes, entries, out):
    n_groups, _, width = entries.shape
    for i in range(codes.shape[0]):
        for g in range(n_groups):
            entry = entries[g, codes[i, g]]
            for w in range(width):
                out[i, g * width + w] = entry[w]


@compiled()
def _code_sums(x, codes, sums):
    for i in range(x.shape[0]):
        row, total = x[i], sums[codes[i]]
        for w in range(row.size):
            total[w] += row[w]


@compiled()
def _add_entries(x, entries, codes):
    for i in range(x.shape[0]):
        row, entry = x[i], entries[codes[i]]
        for w in range(row.size):
            row[w] += entry[w]


@compiled()
def _table_sum(codes, tables, plain, scale, bias, out):
    n, n_tables = codes.shape
    width = out.shape[1]
    single = n_tables % 4
    for i in range(n):
        if i + 1 < n:
            for c in range(n_tables):
                following = tables[c, codes[i + 1, c]]
                ask(following.ctypes.data, following.nbytes)
        row, first, factor = out[i], tables[0, codes[i, 0]], scale[i]
        for e in range(width):
            row[e] = number(first[e]) if single > 0 else np.float32(0)
        for c in range(1, single):
            other = tables[c, codes[i, c]]
            for e in range(width):
                row[e] += number(other[e])
        for c in range(single, n_tables, 4):  # four at a time: a quarter of the traffic of the running sum
            t0, t1 = tables[c, codes[i, c]], tables[c + 1, codes[i, c + 1]]
            t2, t3 = tables[c + 2, codes[i, c + 2]], tables[c + 3, codes[i, c + 3]]
            for e in range(width):
                row[e] = row[e] + number(t0[e]) + number(t1[e]) + number(t2[e]) + number(t3[e])
        if not plain:
            for e in range(width):
                row[e] = row[e] * factor + bias[e]


@compiled(fastmath=FASTMATH)
def _gram_sum(codes, gram, out):
    n, n_stages = codes.shape
    for i in range(n):
        total = 0.0
        for a in range(n_stages):
            total += gram[a, a, codes[i, a], codes[i, a]]
            for b in range(a):  # gram is symmetric
                total += 2.0 * gram[a, b, codes[i, a], codes[i, b]]
        out[i] = total
