"""Queries, keys and values narrowed to bfloat16 and laid out for products. For CPUs with AVX512-BF16.

A word is two bfloat16; 16 words are a line. Rows of queries are words of d numbers, then zeros. Keys lie in strips
of 16, (words, 16): line w has word w of 16 keys. Values lie in strips of 16 numbers, (pairs of keys, 16): line p has
those of keys 2 p and 2 p + 1. Where keys or values lie is said row by row: they may be rows of a table.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from astra_mpi.kernels.cpu._math import FASTMATH, f32
from astra_mpi.kernels.cpu._memory import ask, bits, floats
from astra_mpi.kernels.cpu._simd import F32, I32, I64, LANES

u32 = np.uint32
#: keys and values asked for before they are packed, where rows of a table lie far apart
_AHEAD = 32

_FLOATS, _WORDS, _HALVES = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES), ir.VectorType(ir.IntType(16), 32)


def _load(builder, address):
    return builder.load(builder.inttoptr(address, _FLOATS.as_pointer()), align=4)


def _store(builder, vector, address):
    builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()), align=4)


def _narrowed(builder, low, high):
    """32 bfloat16, those of `low` first, as 16 words."""
    kind = ir.FunctionType(_WORDS, [_FLOATS, _FLOATS])
    return builder.call(ir.InlineAsm(kind, "vcvtne2ps2bf16 $2, $1, $0", "=v,v,v"), [high, low])


def _shuffled(builder, a, b, mask):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(mask)), mask))


def _transposed(builder, rows):
    """16 vectors of 16 words -> their columns: blocks of 1, 2, 4 and 8 words change places."""
    for step in (1, 2, 4, 8):
        low = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
        high = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
        for i in range(LANES):
            if not i & step:
                a, b = rows[i], rows[i + step]
                rows[i], rows[i + step] = _shuffled(builder, a, b, low), _shuffled(builder, a, b, high)
    return rows


@intrinsic
def _pack_16_keys(typingctx, at, skipped, out):
    """32 numbers of 16 rows, whose addresses lie at `at`, after `skipped` bytes of each -> 16 lines at `out`."""

    def generate(context, builder, signature, arguments):
        places, after, line = arguments
        addresses = builder.inttoptr(places, I64.as_pointer())
        rows = []
        for i in range(LANES):
            row = builder.add(builder.load(builder.gep(addresses, [ir.Constant(I64, i)])), after)
            high = _load(builder, builder.add(row, ir.Constant(I64, 4 * LANES)))
            rows.append(_narrowed(builder, _load(builder, row), high))
        for i, column in enumerate(_transposed(builder, rows)):
            _store(builder, column, builder.add(line, ir.Constant(I64, 64 * i)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _pack_pair(typingctx, first, second, out):
    """16 numbers of two keys -> a line at `out`."""

    def generate(context, builder, signature, arguments):
        one, other, line = arguments
        halves = builder.bitcast(_narrowed(builder, _load(builder, one), _load(builder, other)), _HALVES)
        pairs = [half for i in range(LANES) for half in (i, LANES + i)]
        _store(builder, _shuffled(builder, halves, halves, pairs), line)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _narrow_32(typingctx, address, out):
    """32 numbers -> a line at `out`."""

    def generate(context, builder, signature, arguments):
        high = _load(builder, builder.add(arguments[0], ir.Constant(I64, 4 * LANES)))
        _store(builder, _narrowed(builder, _load(builder, arguments[0]), high), arguments[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@njit(fastmath=FASTMATH)
def _narrow(number):
    """float32 -> the bits of the nearest bfloat16 in the lower half of a word, ties to even; NaN stays NaN."""
    word = f32(number).view(u32)
    rounded = u32(word + u32(u32(0x7FFF) + u32(u32(word >> u32(16)) & u32(1))))
    return u32(u32(rounded if u32(word & u32(0x7FFFFFFF)) <= u32(0x7F800000) else u32(0x7FC00000)) >> u32(16))


@njit(fastmath=FASTMATH)
def narrow_row(address, d, at, n_words):
    """d numbers at an address -> n_words words at another, zero beyond."""
    whole = d // 32
    for i in range(whole):
        _narrow_32(address + 128 * i, at + 64 * i)  # type: ignore[call-arg]
    row, out = floats(address, d), bits(at, n_words)
    for w in range(16 * whole, n_words):
        low = _narrow(row[2 * w]) if 2 * w < d else u32(0)
        out[w] = low | u32((_narrow(row[2 * w + 1]) if 2 * w + 1 < d else u32(0)) << u32(16))


@njit(fastmath=FASTMATH)
def addresses(first, stride, rows, at):
    """at (m,) int64 = where rows (m,) of an array lie, whose rows are `stride` bytes apart; where `rows` is empty, its
    first m ones."""
    for j in range(at.size):
        at[j] = first + (rows[j] if rows.size else j) * stride


@njit(fastmath=FASTMATH)
def pack_keys(at, d, line, out):
    """Keys (m, d), whose addresses are at (m,) int64 -> strips out (m' / 16, w, 16) of words; line (w,) is scratch."""
    places, first = at.ctypes.data, out.ctypes.data
    for s in range(out.shape[0]):
        for j in range(16 * s + _AHEAD, min(16 * (s + 1) + _AHEAD, at.size)):
            ask(at[j], 4 * d)
        whole = d // 32 if 16 * (s + 1) <= at.size else 0
        for i in range(whole):
            _pack_16_keys(places + 128 * s, 128 * i, first + 64 * (s * line.size + 16 * i))  # type: ignore[call-arg]
        if whole * 16 < line.size:
            for j in range(16):
                if 16 * s + j < at.size:
                    narrow_row(at[16 * s + j], d, line.ctypes.data, line.size)
                else:
                    line[:] = u32(0)
                for w in range(16 * whole, line.size):
                    out[s, w, j] = line[w]


@njit(fastmath=FASTMATH)
def pack_values(at, d, out):
    """Values (m, d), whose addresses are at (m,) int64 -> strips out (d' / 16, m' / 2, 16) of words."""
    strip_bytes, n_keys = 64 * out.shape[1], at.size
    whole, line = d // 16, out.ctypes.data
    for p in range(n_keys // 2):
        first, second = at[2 * p], at[2 * p + 1]
        for j in range(2 * p + _AHEAD, min(2 * p + 2 + _AHEAD, n_keys)):
            ask(at[j], 4 * d)
        for s in range(whole):
            _pack_pair(first + 64 * s, second + 64 * s, line + 64 * p + strip_bytes * s)  # type: ignore[call-arg]
        if 16 * whole < d:
            _pack_rest(floats(first, d), floats(second, d), whole, out[:, p])
    for p in range(n_keys // 2, out.shape[1]):
        last = floats(at[n_keys - 1], d if 2 * p < n_keys else 0)
        _pack_rest(last, last[:0], np.int64(0), out[:, p])


@njit(fastmath=FASTMATH)
def _pack_rest(first, second, begin, out):
    """Lines out (s, 16), from line `begin` on, of the numbers of two keys; zero beyond."""
    for s in range(begin, out.shape[0]):
        for e in range(16):
            i = 16 * s + e
            low = _narrow(first[i]) if i < first.size else u32(0)
            out[s, e] = low | u32((_narrow(second[i]) if i < second.size else u32(0)) << u32(16))
