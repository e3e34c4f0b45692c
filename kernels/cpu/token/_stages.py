"""New tokens through blocks, four steps of each: a product, what it takes, and what is made of its result.

Every thread of a team runs this. What one computes alone lies in shared buffers and is read after a `barrier`; small
things that all need, all compute, in buffers of their own.
"""

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._barrier import barrier
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import FASTMATH, f32
from astra_mpi.kernels.cpu._memory import float_rows, floats
from astra_mpi.kernels.cpu._rows import _activate, _layer_norm, _rms_norm, _rotate
from astra_mpi.kernels.cpu.token import tables as c
from astra_mpi.kernels.cpu.token._attention import append, attend, first_in_window
from astra_mpi.kernels.cpu.token._products import product, share
from astra_mpi.kernels.cpu.token._vectors import copy, fill


@compiled(fastmath=FASTMATH, error_model="numpy")
def advance(first, last, model, factors, blocks, shared, own, cache, spans, new, turns, team, index, count):
    """Steps first .. last of the new tokens, N_STEPS of each block, as thread `index` of `count`; see `tables`."""
    n, d_model, d_ff = len(new), model[c.D_MODEL], model[c.D_FF]
    d_queries = model[c.N_HEADS] * model[c.D_HEAD]
    width = d_queries + 2 * model[c.N_KV_HEADS] * model[c.D_HEAD]
    for step in range(first, last):
        block, part = blocks[step // c.N_STEPS], step % c.N_STEPS
        is_head = step // c.N_STEPS == model[c.N_LAYERS]
        x, ldx, out, ldo, which, behind = own[c.TAKEN], d_model, shared[c.ADDED], d_model, c.FC2, c.N_MATRICES
        if part == c.PROJECT:
            _input(model, factors, block, shared, own, n)
            if is_head:
                out, ldo, which, behind = shared[c.LOGITS], model[c.VOCABULARY], c.Q, c.K
            else:
                out, ldo, which, behind = shared[c.QKV], width, c.Q, c.O
        elif part == c.OUTPUT:
            _finish(model, shared, own, n)
            ldx, which, behind = d_queries, c.O, c.FC1
        elif part == c.WIDEN:
            out, ldo, which, behind = shared[c.INNER], d_ff, c.FC1, c.FC2
        else:
            x, ldx = shared[c.INNER], d_ff
        for one in range(which, behind):
            target = shared[c.GATES] if one == c.GATE else out
            matrix = block[one * c.N_MATRIX : (one + 1) * c.N_MATRIX]
            product(matrix, x, 4 * ldx, n, target, 4 * ldo, own, index, count)
        if is_head:
            continue
        if part == c.PROJECT:
            barrier(team, count)
            if index == 0:
                _heads(step // c.N_STEPS, model, factors, block, shared, own, n, turns)
            barrier(team, count)
            if model[c.ATTENDS]:
                i = step // c.N_STEPS
                _attend(i, model, factors, block, shared, own, cache, spans, new, team, index, count)
                barrier(team, count)
        elif part == c.WIDEN:
            _activated(model, block, shared, n, index, count)
            barrier(team, count)
        else:
            _add(part == c.OUTPUT, model, factors, block, shared, own, n, team, index, count)


@inner()
def _norm(model, factors, x, n, block, which, out):
    """Rows x (n, D) normalised by the vectors `which` of the block -> out (n, D)."""
    d = model[c.D_MODEL]
    weight = floats(block[which], d)
    if model[c.RMS]:
        _rms_norm(float_rows(x, n, d), weight, factors[c.EPS], float_rows(out, n, d))
    else:
        _layer_norm(float_rows(x, n, d), weight, floats(block[which + 1], d), factors[c.EPS], float_rows(out, n, d))


@inner(fastmath=FASTMATH)
def _plus(x, y, bias, n):
    """x (n,) += y + bias; addresses, 0 for none."""
    total = floats(x, n)
    if y:
        other = floats(y, n)
        for j in range(n):
            total[j] += other[j]
    if bias:
        constant = floats(bias, n)
        for j in range(n):
            total[j] += constant[j]


@inner()
def _input(model, factors, block, shared, own, n):
    """What the attention projects (n, D)."""
    if block[c.NORM1] and model[c.NORM_FIRST]:
        _norm(model, factors, shared[c.X], n, block, c.NORM1, own[c.TAKEN])
    else:
        copy(shared[c.X], own[c.TAKEN], n * model[c.D_MODEL])


@inner()
def _heads(i, model, factors, block, shared, own, n, turns):
    """The projection with its biases, normalised and turned. What is noted is noted."""
    d, site, d_model = model[c.D_HEAD], model[c.SITE], model[c.D_MODEL]
    n_q, n_kv = model[c.N_HEADS] * d, model[c.N_KV_HEADS] * d
    if site == 1 or site == 2:
        copy(shared[c.X] if site == 1 else own[c.TAKEN], shared[c.NOTES] + 4 * i * n * d_model, n * d_model)
    for t in range(n):
        row = shared[c.QKV] + 4 * t * (n_q + 2 * n_kv)
        _plus(row, 0, block[c.B_QKV], n_q + 2 * n_kv)
        queries = floats(row, n_q)
        for j in range(n_q):
            queries[j] *= factors[c.QUERY_SCALE]
        if model[c.QK_NORM]:
            _head_norm(model, factors, row, model[c.N_HEADS], block[c.Q_NORM], shared)
            _head_norm(model, factors, row + 4 * n_q, model[c.N_KV_HEADS], block[c.K_NORM], shared)
        if site == 3:
            copy(row + 4 * n_q, shared[c.NOTES] + 8 * (i * n + t) * n_kv, 2 * n_kv)
        if block[c.TURNS]:
            turn = float_rows(turns[block[c.TURNS] - 1] + 4 * t * d, 1, d)
            _rotate(float_rows(row, 1, n_q + n_kv), turn, model[c.N_HEADS] + model[c.N_KV_HEADS])


@inner(fastmath=FASTMATH)
def _head_norm(model, factors, x, n_heads, weight, shared):
    """Queries or keys x (n_heads d,) of one token, in place; see `HeadNorm`."""
    d, kind = model[c.D_HEAD], model[c.QK_NORM]
    width = n_heads * d
    if kind == 2:
        heads = float_rows(x, n_heads, d)
        _layer_norm(heads, floats(shared[c.ONES], d), floats(shared[c.ZEROS], d), factors[c.EPS], heads)
        numbers, gains = floats(x, width), floats(weight, width)
        for j in range(width):
            numbers[j] *= gains[j]
    else:
        heads = float_rows(x, n_heads if kind == 1 else 1, d if kind == 1 else width)
        _rms_norm(heads, floats(weight, heads.shape[1]), factors[c.EPS], heads)


@inner()
def _append(i, model, shared, own, cache, spans, new, t, head):
    """Key and value of a head of new token t, where they stay here."""
    if new[t, c.KEPT]:
        kv_heads, d = model[c.N_KV_HEADS], model[c.D_HEAD]
        kv = shared[c.QKV] + 4 * d * (t * (model[c.N_HEADS] + 2 * kv_heads) + model[c.N_HEADS])
        segment = cache[spans[i, new[t, c.SEQUENCE] + 1] - 1]
        append(segment, segment[c.COUNT] - new[t, c.BEHIND] - 1, kv, head, kv_heads, d, own)


@inner()
def _attend(i, model, factors, block, shared, own, cache, spans, new, team, index, count):
    """Softmaxes (n, H (d + 2)) of the new tokens over what is kept of their sequences, key head by key head.

    Threads have as many key heads each; those that are left over they share, some of their queries each.
    """
    kv_heads, n = model[c.N_KV_HEADS], len(new)
    repeat, units = model[c.N_HEADS] // kv_heads, n * kv_heads
    shared_units = units % count if repeat >= count else 0
    appended = model[c.SEVERAL] or shared_units  # before anybody reads: what a thread has appended, others read, too
    if appended:
        for unit in range(index, units, count):
            _append(i, model, shared, own, cache, spans, new, unit % n, unit // n)
        barrier(team, count)
    for unit in range(index, units - shared_units, count):
        if not appended:
            _append(i, model, shared, own, cache, spans, new, unit % n, unit // n)
        _attend_unit(i, model, factors, block, shared, own, cache, spans, new, unit % n, unit // n, 0, repeat)
    low, high = repeat * index // count, repeat * (index + 1) // count
    for unit in range(units - shared_units, units):
        _attend_unit(i, model, factors, block, shared, own, cache, spans, new, unit % n, unit // n, low, high)


@inner()
def _attend_unit(i, model, factors, block, shared, own, cache, spans, new, t, head, low, high):
    """Of new token t the queries low .. high of a key head."""
    heads, kv_heads, d = model[c.N_HEADS], model[c.N_KV_HEADS], model[c.D_HEAD]
    first_query, n_queries = head * (heads // kv_heads) + low, high - low
    row, qkv = shared[c.SOFTMAX] + 4 * t * heads * (d + 2), shared[c.QKV] + 4 * t * (heads + 2 * kv_heads) * d
    q, acc = qkv + 4 * first_query * d, row + 4 * first_query * d
    row_max = row + 4 * (heads * d + first_query)
    row_sum = row_max + 4 * heads
    fill(acc, n_queries * d, f32(0))
    fill(row_max, n_queries, f32(-np.inf))
    fill(row_sum, n_queries, f32(0))
    end = spans[i, new[t, c.SEQUENCE] + 1]
    for s in range(spans[i, new[t, c.SEQUENCE]], end):
        segment, first = cache[s], 0
        last = segment[c.COUNT] - (new[t, c.BEHIND] if s == end - 1 else 0)
        if block[c.WINDOW] and segment[c.PLACES]:
            first = first_in_window(segment, new[t, c.POSITION] - block[c.WINDOW])
        attend(segment, first, last, q, n_queries, head, kv_heads, d, factors[c.SCORE_CAP], acc, row_max, row_sum, own)


@inner(fastmath=FASTMATH)
def _finish(model, shared, own, n):
    """Softmaxes -> what attention gives (n, H d)."""
    heads, d = model[c.N_HEADS], model[c.D_HEAD]
    for t in range(n):
        row = shared[c.SOFTMAX] + 4 * t * heads * (d + 2)
        sums = floats(row + 4 * heads * (d + 1), heads)
        for h in range(heads):
            acc, out, inverse = floats(row + 4 * h * d, d), floats(own[c.TAKEN] + 4 * (t * heads + h) * d, d), f32(0)
            inverse = f32(1) / sums[h]
            for e in range(d):
                out[e] = acc[e] * inverse


@inner()
def _add(after_attention, model, factors, block, shared, own, n, team, index, count):
    """The residual sum with the last layer of the attention, or of the MLP, and the norms around it. Afterwards own
    TAKEN is what the MLP takes, and all threads are done with what they share."""
    d_model, taken, x = model[c.D_MODEL], own[c.TAKEN], shared[c.X]
    first, last = share(d_model, index, count)
    bias = block[c.B_O] if after_attention else block[c.B_FC2]
    bias = bias + 4 * first if bias else 0
    width = last - first
    normed_sum = not (model[c.NORM_FIRST] or model[c.OUTPUT_NORMS] or (model[c.PARALLEL] and after_attention))
    if after_attention and model[c.PARALLEL]:
        _norm(model, factors, x, n, block, c.NORM1 if model[c.SHARED_NORM] else c.NORM2, taken)
        barrier(team, count)
    elif model[c.OUTPUT_NORMS]:
        for t in range(n):
            _plus(shared[c.ADDED] + 4 * (t * d_model + first), 0, bias, width)
        barrier(team, count)
        _norm(model, factors, shared[c.ADDED], n, block, c.POST1 if after_attention else c.POST2, taken)
        bias = 0
    added = taken if model[c.OUTPUT_NORMS] and not (after_attention and model[c.PARALLEL]) else shared[c.ADDED]
    for t in range(n):
        place = 4 * (t * d_model + first)
        _plus(x + place, added + place, bias, width)
    barrier(team, count)
    if normed_sum:
        _norm(model, factors, x, n, block, c.NORM1 if after_attention else c.NORM2, taken)
        barrier(team, count)
        for t in range(n):
            place = 4 * (t * d_model + first)
            copy(taken + place, x + place, width)
        barrier(team, count)
    elif after_attention and not model[c.PARALLEL]:
        if block[c.NORM2]:
            _norm(model, factors, x, n, block, c.NORM2, taken)
        else:
            copy(x, taken, n * d_model)


@inner(fastmath=FASTMATH)
def _activated(model, block, shared, n, index, count):
    """This thread's columns of the inner activations (n, d_ff)."""
    d_ff, gated = model[c.D_FF], model[c.GATED]
    first, last = share(d_ff, index, count)
    width = last - first
    if not width:
        return
    bias = block[c.B_GATE] if gated else block[c.B_FC1]
    constant = floats(bias + 4 * first if bias else shared[c.ZEROS], width)
    activated = shared[c.GATES] if gated else shared[c.INNER]
    for t in range(n):
        place = 4 * (t * d_ff + first)
        _activate(float_rows(activated + place, 1, width), constant, model[c.ACTIVATION])
        if gated:
            _plus(shared[c.INNER] + place, 0, block[c.B_FC1] + 4 * first if block[c.B_FC1] else 0, width)
            inner, gates = floats(shared[c.INNER] + place, width), floats(shared[c.GATES] + place, width)
            for j in range(width):
                inner[j] *= gates[j]
