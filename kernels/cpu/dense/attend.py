"""Online softmax attention in float32, a tile of queries by a tile of keys at a time, in one compiled call."""

import numpy as np
from numba import njit

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import FASTMATH, exp, f32, from_ordered_bits, i32, ordered_bits
from astra_mpi.kernels.cpu._memory import float_rows, floats
from astra_mpi.kernels.cpu.dense.strip import NARROW, WIDE, narrow_strip, wide_strip

#: queries and keys of a tile: scores and keys stay in the second-level cache
QUERIES, KEYS = 64, 512
#: columns of what is told of q, k, v and the running state: address, bytes from head to head, from row to row
ADDRESS, HEAD, ROW = range(3)


@inner()
def tile_of(n, most, i):
    """First and last of tile i of n things cut evenly, none of more than `most`."""
    count = (n + most - 1) // most
    return n * i // count, n * (i + 1) // count


@compiled(fastmath=FASTMATH, error_model="numpy")
def attend_units(q, k, v, acc, row_max, row_sum, bias, sizes, begins, done, first, last, turned, scores):
    """Tiles of queries first .. last, counted over the key heads. q, k, v: ADDRESS, HEAD, ROW each.

    acc (H, a, d), row_max, row_sum (H, a): addresses. bias: address (m,), 0 for none. sizes: queries, keys, d, query
    heads to a key head, and `reach`: query i sees key j when j <= i + reach. begins: the first step. done: address of
    the result (a, H d), 0 for none, and bytes between its rows. turned (KEYS d,), scores (QUERIES, KEYS): room.
    """
    n_queries, n_keys, d, repeat, reach = sizes
    n_tiles = (n_queries + QUERIES - 1) // QUERIES
    room = scores.ctypes.data
    for g in range(first // n_tiles, (last - 1) // n_tiles + 1):
        begin, end = max(first - g * n_tiles, 0), min(last - g * n_tiles, n_tiles)
        start, seen = tile_of(n_queries, QUERIES, begin)[0], tile_of(n_queries, QUERIES, end - 1)[1]
        if begins:
            for head in range(g * repeat, (g + 1) * repeat):
                place, n = head * n_queries + start, seen - start
                floats(acc + 4 * d * place, n * d)[:] = 0
                floats(row_max + 4 * place, n)[:] = -np.inf
                floats(row_sum + 4 * place, n)[:] = 0
        for tile in range((n_keys + KEYS - 1) // KEYS):
            key, stop = tile_of(n_keys, KEYS, tile)
            if key >= seen + reach:
                break
            _turn(k[ADDRESS] + g * k[HEAD] + key * k[ROW], k[ROW], stop - key, d, turned)
            values = v[ADDRESS] + g * v[HEAD] + key * v[ROW]
            for t in range(begin, end):
                query, behind = tile_of(n_queries, QUERIES, t)
                n_seen = min(stop - key, behind + reach - key)  # by the last query
                if n_seen <= 0:
                    continue
                n = behind - query
                for head in range(g * repeat, (g + 1) * repeat):
                    place = head * n_queries + query
                    sums, biases = acc + 4 * d * place, bias + 4 * key if bias else 0
                    _scores(q[ADDRESS] + head * q[HEAD] + query * q[ROW], q[ROW], n, turned, d, n_seen, room)
                    state = sums, d, row_max + 4 * place, row_sum + 4 * place
                    _weigh(room, n, n_seen, biases, query + reach - key, *state)
                    _gather(room, n, n_seen, values, v[ROW], sums, d)
        if done[0]:
            for head in range(g * repeat, (g + 1) * repeat):
                place, n = head * n_queries + start, seen - start
                sums, totals = float_rows(acc + 4 * d * place, n, d), floats(row_sum + 4 * place, n)
                target = done[0] + start * done[1] + 4 * d * head
                for i in range(n):
                    finish_row(sums[i], totals[i], target + i * done[1])


@inner()
def _turn(keys, row, n, d, turned):
    """Keys (n, d) -> strips (d, WIDE), zeros behind the last key."""
    at = turned.ctypes.data
    for strip in range((n + WIDE - 1) // WIDE):
        columns = float_rows(at + 4 * WIDE * d * strip, d, WIDE)
        n_here = min(WIDE, n - WIDE * strip)
        if n_here < WIDE:
            columns[:, :] = 0
        for j in range(n_here):
            key = floats(keys + (WIDE * strip + j) * row, d)
            for e in range(d):
                columns[e, j] = key[e]


@inner()
def _scores(queries, row, n, turned, d, n_seen, room):
    """(n, n_seen) products of queries and keys, a row KEYS long."""
    for strip in range((n_seen + WIDE - 1) // WIDE):
        columns = turned.ctypes.data + 4 * WIDE * d * strip
        wide_strip(queries, row, n, columns, 4 * WIDE, room + 4 * WIDE * strip, 4 * KEYS, d, 1, 4 * WIDE * d)


@compiled(fastmath=FASTMATH, error_model="numpy")
def _weigh(room, n, n_keys, bias, reach, acc, d, row_max, row_sum):
    """Scores (n, n_keys) -> exp(scores + bias - new maximum); the running state follows the new maximum."""
    maxima, totals = floats(row_max, n), floats(row_sum, n)
    for i in range(n):
        n_seen = min(n_keys, max(0, i + reach + 1))
        row = floats(room + 4 * KEYS * i, n_keys)
        if bias:
            added = floats(bias, n_keys)
            for j in range(n_seen):
                row[j] += added[j]
        highest = ordered_bits(-np.inf)
        for j in range(n_seen):
            highest = i32(max(highest, ordered_bits(row[j])))
        row[n_seen:] = 0
        old_max = maxima[i]
        new_max = max(old_max, from_ordered_bits(highest))
        if new_max == -np.inf:
            row[:] = 0
            continue
        total = f32(0)
        for j in range(n_seen):
            row[j] = weight(row[j] - new_max)
            total += row[j]
        if new_max > old_max:
            decay = weight(old_max - new_max)
            totals[i] *= decay
            sums = floats(acc + 4 * d * i, d)
            for e in range(d):
                sums[e] *= decay
        totals[i] += total
        maxima[i] = new_max


@njit(fastmath=FASTMATH)
def weight(x):
    """e^x for x <= 0, and exactly 0 for -inf: a hidden key weighs nothing."""
    return exp(x) if x > f32(-87) else f32(0)


@inner()
def _gather(room, n, n_seen, values, row, sums, d):
    """Sums (n, d) += weights (n, n_seen) @ values (n_seen, d); d is a multiple of NARROW."""
    for e in range(0, d - d % WIDE, WIDE):
        wide_strip(room, 4 * KEYS, n, values + 4 * e, row, sums + 4 * e, 4 * d, n_seen, 0, 4 * WIDE)
    if d % WIDE:
        e = d - NARROW
        narrow_strip(room, 4 * KEYS, n, values + 4 * e, row, sums + 4 * e, 4 * d, n_seen, 0)


@compiled(fastmath=FASTMATH, error_model="numpy")
def finish_heads(acc, row_sum, out, stride):
    """out (a, H d) at an address, `stride` bytes between rows = acc (H, a, d) / row_sum (H, a), 0 where that is 0."""
    n_heads, n, d = acc.shape
    for i in range(n):
        for h in range(n_heads):
            finish_row(acc[h, i], row_sum[h, i], out + i * stride + 4 * d * h)


@compiled(fastmath=FASTMATH, error_model="numpy")
def finish_row(sums, total, out):
    """(d,) numbers at an address = sums (d,) / total, 0 where that is 0."""
    target, inverse = floats(out, sums.size), f32(0) if total == f32(0) else f32(1) / total
    for e in range(sums.size):
        target[e] = sums[e] * inverse
