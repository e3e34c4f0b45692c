"""A new token's heads over the keys and values of its sequence, one step of online softmax per tile of keys."""

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import FASTMATH, exp, f32
from astra_mpi.kernels.cpu._memory import bits, floats, integers, shorts, signed_bytes
from astra_mpi.kernels.cpu.token._dots import dots
from astra_mpi.kernels.cpu.token._narrow_rows import quantised, scale_counts, to_bfloat16
from astra_mpi.kernels.cpu.token._products import (
    HAS_BFLOAT16,
    HAS_INT8,
    add_bfloat16,
    add_float32,
    add_int8,
    dots_bfloat16,
    dots_int8,
)
from astra_mpi.kernels.cpu.token._vectors import copy
from astra_mpi.kernels.cpu.token.tables import (
    BFLOAT16_ROWS,
    BIAS,
    CAPACITY,
    CODED_ROWS,
    CODES,
    COUNT,
    FACTORS,
    INT8_ROWS,
    KEY_SCALES,
    KEYS,
    KIND,
    NARROWED,
    PLACES,
    ROW_SUMS,
    ROWS,
    SCORES,
    TILE,
    TILE_KEYS,
    VALUE_SCALES,
    VALUES,
)


@inner(fastmath=FASTMATH)
def weight(x):
    """e^x for x <= 0, and exactly 0 for -inf: a hidden key weighs nothing."""
    return exp(x) if x > f32(-87) else f32(0)


@inner()
def first_in_window(segment, hidden):
    """The first key whose position is above `hidden`; positions ascend."""
    places = integers(segment[PLACES], segment[COUNT])
    low, high = 0, segment[COUNT]
    while low < high:
        middle = (low + high) // 2
        if places[middle] <= hidden:
            low = middle + 1
        else:
            high = middle
    return low


@inner()
def attend(segment, first, n, q, repeat, head, n_kv_heads, d, cap, acc, row_max, row_sum, own):
    """`repeat` scaled queries of one key head, q (repeat, d), over keys `first` .. n; acc (repeat, d), row_max and
    row_sum (repeat,) are addresses of the running softmax."""
    kind, ld = segment[KIND], 4 * TILE_KEYS
    packed, place = kind in (BFLOAT16_ROWS, INT8_ROWS), head * segment[CAPACITY]
    while first < n:
        begin = first // 64 * 64 if packed else first  # tiles of packed keys begin at whole strips
        end = min(n, begin + TILE_KEYS)
        if kind == ROWS:
            keys = segment[KEYS] + 4 * d * (place + begin)
            dots(q, 4 * d, repeat, keys, 4 * d, end - begin, d, own[SCORES], ld)
        elif kind == CODED_ROWS:
            _score_coded(segment, begin, end, q, repeat, head, n_kv_heads, d, own)
        elif kind == BFLOAT16_ROWS:
            _score_bfloat16(segment, begin, end, q, repeat, head, d, own)
        else:
            _score_int8(segment, begin, end, q, repeat, head, d, own)
        _softmax(segment, begin, first, end, repeat, d, cap, acc, row_max, row_sum, own)
        values = segment[VALUES] + d * (place + begin) * (4 if kind == ROWS else (2 if kind == BFLOAT16_ROWS else 1))
        if kind == ROWS:
            add_float32(own[SCORES], ld, repeat, values, 4 * d, end - begin, d, acc, 4 * d)
        elif kind == CODED_ROWS:
            _gather_coded(segment, begin, end, repeat, head, n_kv_heads, d, acc, own)
        elif kind == BFLOAT16_ROWS:
            add_bfloat16(own[SCORES], ld, repeat, values, 2 * d, end - begin, d, acc, 4 * d)
        else:
            _scale_weights(segment, place + begin, end - begin, repeat, own)
            add_int8(own[SCORES], ld, repeat, values, d, end - begin, d, acc, 4 * d)
        first = end


@inner(fastmath=FASTMATH)
def _scale_weights(segment, place, n, repeat, own):
    """Weights of n keys times the factors of their values."""
    scales = floats(segment[VALUE_SCALES] + 4 * place, n)
    for r in range(repeat):
        weights = floats(own[SCORES] + 4 * r * TILE_KEYS, n)
        for j in range(n):
            weights[j] *= scales[j]


@inner()
def _score_coded(segment, first, last, q, repeat, head, n_kv_heads, d, own):
    """Scores (repeat, TILE_KEYS) of keys first .. last that are rows of a table."""
    codes = shorts(segment[CODES], segment[COUNT])
    for r in range(repeat):
        query, scores = floats(q + 4 * r * d, d), floats(own[SCORES] + 4 * r * TILE_KEYS, TILE_KEYS)
        for j in range(first, last):
            row = segment[KEYS] + 4 * d * (2 * n_kv_heads * np.int64(codes[j]) + head)
            scores[j - first] = _dot(query, floats(row, d))


@inner(fastmath=FASTMATH)
def _dot(a, b):
    total = f32(0)
    for e in range(a.size):
        total += a[e] * b[e]
    return total


@inner(fastmath=FASTMATH)
def _score_bfloat16(segment, first, last, q, repeat, head, d, own):
    if not HAS_BFLOAT16:
        return
    n_words = (d + 1) // 2
    a, lda, c = own[NARROWED], 4 * n_words, own[TILE]
    keys = segment[KEYS] + head * segment[CAPACITY] * lda
    to_bfloat16(q, 4 * d, repeat, d, a, lda)
    for j in range(first, last, 64):
        n = min(64, last - j)
        for r in range(0, repeat, 4):
            rows = min(4, repeat - r)
            dots_bfloat16(a + r * lda, lda, rows, keys + j * lda, 16 * lda, (n + 15) // 16, n_words, c)
            for i in range(rows):
                copy(c + 256 * i, own[SCORES] + 4 * ((r + i) * TILE_KEYS + j - first), n)


@inner(fastmath=FASTMATH)
def _score_int8(segment, first, last, q, repeat, head, d, own):
    if not HAS_INT8:
        return
    n_words = (d + 3) // 4
    a, lda, c = own[NARROWED], 4 * n_words, own[TILE]
    keys = segment[KEYS] + head * segment[CAPACITY] * lda
    factors, sums = floats(own[FACTORS], 4), floats(own[ROW_SUMS], 4)
    for r in range(0, repeat, 4):
        rows = min(4, repeat - r)
        for i in range(rows):
            factors[i], sums[i] = quantised(q + 4 * (r + i) * d, d, a + i * lda, lda)
        for j in range(first, last, 64):
            n = min(64, last - j)
            dots_int8(a, lda, rows, keys + j * lda, 16 * lda, (n + 15) // 16, n_words, c)
            scales, scores = segment[KEY_SCALES] + 4 * (head * segment[CAPACITY] + j), own[SCORES] + 4 * (j - first)
            scale_counts(own, 0, rows, n, scales, scores + 4 * r * TILE_KEYS, 4 * TILE_KEYS)


@inner(fastmath=FASTMATH)
def _softmax(segment, first_tile, first, last, repeat, d, cap, acc, row_max, row_sum, own):
    """Scores of keys first_tile .. last -> weights, 0 before `first`, times factors of the values if they have some."""
    n, hidden = last - first_tile, first - first_tile
    maxima, sums = floats(row_max, repeat), floats(row_sum, repeat)
    for r in range(repeat):
        scores = floats(own[SCORES] + 4 * r * TILE_KEYS, n)
        for j in range(hidden):
            scores[j] = f32(-np.inf)
        if cap:
            for j in range(n):
                scores[j] = cap - f32(2) * cap / (exp(min(scores[j] * (f32(2) / cap), f32(80))) + f32(1))
            for j in range(hidden):
                scores[j] = f32(-np.inf)
        if segment[BIAS]:
            bias = floats(segment[BIAS] + 4 * first_tile, n)
            for j in range(n):
                scores[j] += bias[j]
        highest = maxima[r]
        for j in range(n):
            highest = max(highest, scores[j])
        if highest > maxima[r]:
            decay = weight(maxima[r] - highest)
            sums[r] *= decay
            gathered = floats(acc + 4 * r * d, d)
            for e in range(d):
                gathered[e] *= decay
            maxima[r] = highest
        total = f32(0)
        if highest == f32(-np.inf):
            for j in range(n):
                scores[j] = f32(0)
        else:
            for j in range(n):
                scores[j] = weight(scores[j] - highest)
                total += scores[j]
        sums[r] += total


@inner(fastmath=FASTMATH)
def _gather_coded(segment, first, last, repeat, head, n_kv_heads, d, acc, own):
    """acc (repeat, d) += weights of keys first .. last times their values, rows of a table."""
    codes = shorts(segment[CODES], segment[COUNT])
    for j in range(last - first):
        row = segment[KEYS] + 4 * d * (2 * n_kv_heads * np.int64(codes[first + j]) + n_kv_heads + head)
        value = floats(row, d)
        for r in range(repeat):
            share, gathered = floats(own[SCORES] + 4 * (r * TILE_KEYS + j), 1)[0], floats(acc + 4 * r * d, d)
            for e in range(d):
                gathered[e] += share * value[e]


@compiled()
def keep(segment, first, kv, ld, n, n_kv_heads, d, room):
    """Rows [K | V] (n, 2 Hkv d) float32, `ld` bytes apart, become those of tokens `first` and after it; room: address
    of d + 3 bytes."""
    for j in range(n):
        for head in range(n_kv_heads):
            key = kv + j * ld + 4 * head * d
            put(segment, head, first + j, key, key + 4 * n_kv_heads * d, d, room)


@inner()
def append(segment, j, kv, head, n_kv_heads, d, own):
    """Key and value of one head of [K | V] (2 Hkv d,) float32 become those of token j."""
    put(segment, head, j, kv + 4 * head * d, kv + 4 * (n_kv_heads + head) * d, d, own[NARROWED])


@inner()
def put(segment, head, j, key, value, d, room):
    """Key and value (d,) of one head, addresses, become those of token j; room: of d + 3 bytes."""
    place, kind = head * segment[CAPACITY] + j, segment[KIND]
    if kind == ROWS:
        copy(key, segment[KEYS] + 4 * d * place, d)
        copy(value, segment[VALUES] + 4 * d * place, d)
        return
    strip_first = head * segment[CAPACITY] + j // 16 * 16
    if kind == BFLOAT16_ROWS:
        n_words = (d + 1) // 2
        lanes = shorts(segment[KEYS] + 4 * n_words * strip_first, 32 * n_words)
        numbers = bits(key, d)
        for e in range(2 * n_words):
            lanes[e // 2 * 32 + j % 16 * 2 + e % 2] = half(numbers[e]) if e < d else np.uint16(0)
        to_bfloat16(value, 0, 1, d, segment[VALUES] + 2 * d * place, 2 * d)
        return
    n_words = (d + 3) // 4
    floats(segment[KEY_SCALES], place + 1)[place], _ = quantised(key, d, room, 4 * n_words)
    narrow = signed_bytes(room, 4 * n_words)
    lanes = signed_bytes(segment[KEYS] + 4 * n_words * strip_first, 64 * n_words)
    for e in range(4 * n_words):  # + 128, as unsigned bytes
        lanes[e // 4 * 64 + j % 16 * 4 + e % 4] = np.int8(narrow[e] ^ np.int8(-128))
    floats(segment[VALUE_SCALES], place + 1)[place], _ = quantised(value, d, segment[VALUES] + d * place, d)


@inner()
def half(number):
    """The bits of a float32 -> those of the bfloat16 next to it, ties to even."""
    return np.uint16((number + np.uint32(0x7FFF) + ((number >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
