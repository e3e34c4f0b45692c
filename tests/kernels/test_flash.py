"""Attention with products in bfloat16, against the specification on rounded factors, and PyTorch in bfloat16."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from astra_mpi.kernels import cpu
from astra_mpi.kernels import reference_products as specification
from astra_mpi.kernels.cpu import _team, bfloat16, int8
from astra_mpi.kernels.cpu.flash import calls, tiles
from astra_mpi.kernels.cpu.products import amx
from astra_mpi.kernels.near import Near
from helpers.amx_tiles import Tiles

pytestmark = pytest.mark.skipif(calls.used_path() == "widened", reason="the CPU has no AVX512-BF16")
#: of bfloat16, which keeps 8 bits of a number: half a unit in the last place, relative
HALF_ULP = 2.0**-8


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


rounded = specification.round_bfloat16


def start(n_heads, n_queries, d_head):
    return (
        np.zeros((n_heads, n_queries, d_head), np.float32),
        np.full((n_heads, n_queries), -np.inf, np.float32),
        np.zeros((n_heads, n_queries), np.float32),
    )


def result(acc, row_sum):
    return acc / np.where(row_sum == 0, 1, row_sum)[:, :, None]


def attend(*arguments):
    """The path of this CPU, however few scores there are."""
    calls.attend(*arguments, by=calls.used_path())


def check(q, steps, causal=None, attend=attend):
    """Steps (k, v, key_bias, near) by `attend` give what the specification gives.

    Beside rounding in float32, only the weights differ: each by at most half a unit of bfloat16.
    """
    state, expected, most = (start(*q.shape) for _ in range(3))
    for k, v, key_bias, near in steps:
        attend(q, k, v, key_bias, causal, *state, near)
        specification.attend(q, k, v, key_bias, causal, *expected, near)
        specification.attend(q, k, abs(v), key_bias, causal, *most, near)
    np.testing.assert_allclose(state[1], expected[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state[2], expected[2], rtol=1e-4, atol=1e-6)
    error = abs(result(state[0], state[2]) - result(expected[0], expected[2]))
    bound = 1.05 * HALF_ULP * result(most[0], most[2]) + 1e-5
    assert (error <= bound).all(), f"{error.max():.2e}, allowed there {bound.flat[(error - bound).argmax()]:.2e}"


@pytest.mark.parametrize("d_head", [1, 8, 24, 32, 48, 64, 80, 96, 128])
@pytest.mark.parametrize("n_keys", [0, 1, 17, 513])
def test_sizes(d_head, n_keys):
    for n_queries, n_kv_heads in ((1, 4), (8, 4), (13, 2), (32, 1)):
        q, k = normal(4, n_queries, d_head), normal(n_kv_heads, n_keys, d_head, seed=1)
        check(q / np.float32(d_head**0.5), [(k, normal(*k.shape, seed=2), None, None)])


@pytest.mark.parametrize("causal", [None, 0, 3, -40, 130])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 6])
def test_many_tiles_through_strides(causal, n_kv_heads):
    n_queries, n_keys, d = 270, 1100, 24
    packed = normal(n_keys, 2 * n_kv_heads * d)
    k, v = packed.reshape(n_keys, 2, n_kv_heads, d).transpose(1, 2, 0, 3)
    q = normal(n_queries, 6 * d, seed=1).reshape(n_queries, 6, d).transpose(1, 0, 2)
    before = packed.copy()
    check(q, [(k, v, normal(n_keys, seed=2), None), (k[:, :600], v[:, :600], None, None)], causal)
    assert np.array_equal(packed, before)


@pytest.mark.parametrize("causal", [None, 40])
@pytest.mark.parametrize("cap, window, most", [(1.5, 0, 3), (0.0, 1, 0), (1.5, 7, 3), (0.0, 300, 70), (2.0, 0, 0)])
def test_caps_windows_and_biases_by_distance(cap, window, most, causal):
    """At positions with holes, in two steps."""
    (a, m), rng = (70, 1300), np.random.default_rng(1)
    q, k, v = normal(4, a, 8), normal(2, m, 8), normal(2, m, 8)
    places = [np.sort(rng.choice(1600, n, replace=False)).astype(np.int32) for n in (a, m)]
    relative = normal(4, 2 * most + 1) if most else None
    parts = [slice(0, 300), slice(300, m)]
    steps = [(k[:, p], v[:, p], None, Near(cap, window, relative, places[0], places[1][p])) for p in parts]
    check(q, steps, causal)


def test_any_split_in_any_order_is_the_whole():
    rng = np.random.default_rng(0)
    for trial in range(30):
        n_keys = int(rng.integers(0, 90))
        cuts = np.sort(rng.integers(0, n_keys + 1, 3))
        bounds = rng.permutation(np.stack([[0, *cuts], [*cuts, n_keys]], axis=1))
        q = np.float32(rng.choice([1, 30])) * normal(2, 15, 8, seed=trial)  # 30: the parts' maxima are far apart
        k, v, bias = normal(2, n_keys, 8, seed=1), normal(2, n_keys, 8, seed=2), normal(n_keys)
        bias[rng.random(n_keys) < rng.random()] = -np.inf
        check(q, [(k[:, a:b], v[:, a:b], bias[a:b], None) for a, b in bounds])


def test_hidden_keys_weigh_nothing_and_leave_the_state_as_it_was():
    q, k, v = normal(2, 9, 8), normal(2, 40, 8, seed=1), normal(2, 40, 8, seed=2)
    state, hidden = start(2, 9, 8), np.full(40, -np.inf, np.float32)
    attend(q, k, v, hidden, None, *state)
    assert all(map(np.array_equal, state, start(2, 9, 8)))
    attend(q, k, v, None, None, *state)
    before = [array.copy() for array in state]
    for bias, causal in ((hidden, None), (None, -9)):
        attend(q, k, v, bias, causal, *state)
        assert all(map(np.array_equal, before, state))
    v[:, 1] = 1e38
    attend(q, k[:, :2], v[:, :2], np.array([0, -np.inf], np.float32), None, *(alone := start(2, 9, 8)))
    assert np.array_equal(alone[0], np.repeat(rounded(v[:, :1]), 9, axis=1))  # one key: its weight is exactly 1


def test_weights_of_far_lower_scores_vanish_smoothly():
    """From e^0 down to below what float32 holds."""
    scores = np.linspace(0, -110, 640, dtype=np.float32)
    q, k = np.ones((1, 8, 1), np.float32), rounded(scores).reshape(1, -1, 1)
    state = start(1, 8, 1)
    attend(q, k, np.ones_like(k), None, None, *state)
    expected = np.exp(k.astype(np.float64)).sum()
    np.testing.assert_allclose(state[2], expected, rtol=1e-6)
    np.testing.assert_allclose(state[0], expected, rtol=HALF_ULP)


def test_nan_and_infinity_stay():
    q, k, v = normal(1, 9, 8), normal(1, 40, 8, seed=1), normal(1, 40, 8, seed=2)
    for at in ((0, 3, 2), (0, 39, 7)):
        for factor in (k, v):
            spoilt = factor.copy()
            spoilt[at] = np.nan
            state = start(1, 9, 8)
            attend(q, spoilt if factor is k else k, spoilt if factor is v else v, None, None, *state)
            wrong = np.isnan(result(state[0], state[2]))
            assert wrong.all() if factor is k else (wrong[..., at[2]].all() and not wrong[..., 0].any())
    bits = np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)  # their rounding must not overflow
    v[0, :2, 0] = bits
    attend(q, k, v, None, None, *(state := start(1, 9, 8)))
    assert np.isnan(state[0][..., 0]).all()


@pytest.mark.parametrize("causal", [False, True])
def test_as_accurate_as_pytorch_in_bfloat16(causal):
    """The error against float64, of factors that are bfloat16 already: not above PyTorch's, which rounds its result."""
    q, k, v = (rounded(normal(4, 300, 64, seed=i)) for i in range(3))
    tensors = [torch.from_numpy(z)[None] for z in (q, k, v)]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    exact = sdpa(*(t.double() for t in tensors), is_causal=causal)[0].numpy()
    theirs = sdpa(*(t.bfloat16() for t in tensors), is_causal=causal)[0].float().numpy()
    state = start(4, 300, 64)
    bfloat16.attend(q * np.float32(0.125), k, v, None, 0 if causal else None, *state)
    ours = result(state[0], state[2])
    assert np.linalg.norm(ours - exact) <= 1.1 * np.linalg.norm(theirs - exact)
    assert np.linalg.norm(ours - exact) > 1e-4 * np.linalg.norm(exact)  # else bfloat16 was not used


@pytest.mark.parametrize("kernels", [bfloat16, int8])
def test_float32_where_bfloat16_does_not_pay_or_is_missing(kernels, monkeypatch):
    def same(n_queries, n_keys):
        q, k, v = normal(2, n_queries, 8), normal(2, n_keys, 8, seed=1), normal(2, n_keys, 8, seed=2)
        one, other = start(2, n_queries, 8), start(2, n_queries, 8)
        kernels.attend(q, k, v, None, None, *one)
        cpu.attend(q, k, v, None, None, *other)
        return all(map(np.array_equal, one, other))

    assert same(1, 4000)
    assert same(20, 40)
    assert not same(40, 40)
    monkeypatch.setattr(calls, "features", frozenset)
    assert same(40, 40)


@pytest.mark.parametrize("n_queries, n_keys, d", [(40, 90, 64), (7, 700, 24), (33, 0, 32), (2, 40, 8)])
def test_rows_of_tables_are_those_of_their_copies(n_queries, n_keys, d):
    """Also where there are too few scores for bfloat16."""
    q, k, v = normal(4, n_queries, d), normal(2, 50, d, seed=1), normal(2, 50, d, seed=2)
    rows, bias = np.random.default_rng(0).integers(0, 50, n_keys), normal(n_keys)
    read, copied = start(*q.shape), start(*q.shape)
    bfloat16.attend(q, k, v, bias, None, *read, key_rows=rows)
    bfloat16.attend(q, k[:, rows], v[:, rows], bias, None, *copied)
    assert all(map(np.array_equal, read, copied))


@pytest.mark.parametrize("n_kv_heads, causal", [(1, 0), (3, None), (3, 50)])
def test_threads_change_no_bit(n_kv_heads, causal):
    q, k, v = normal(3, 300, 16), normal(n_kv_heads, 400, 16, seed=1), normal(n_kv_heads, 400, 16, seed=2)
    states = []
    try:
        for n_threads in (1, 2, 3, 7):
            _team.set_size(n_threads)
            states.append(start(3, 300, 16))
            bfloat16.attend(q, k, v, None, causal, *states[-1])
    finally:
        _team.set_size(1)
    assert all(np.array_equal(a, b) for state in states[1:] for a, b in zip(states[0], state, strict=True))


def with_emulated_tiles(emulated):
    """`attend` by the path of AMX, its tiles' instructions replaced, and what calls them run as Python."""

    def python(kernel, **names):
        return types.FunctionType(kernel.py_func.__code__, kernel.py_func.__globals__ | names)

    asking = python(amx.block_asking, ask_line=lambda address: None, **emulated.names())
    block = python(amx.block, block_asking=asking)
    sweep = types.SimpleNamespace(sweep=python(amx.sweep, block=block, **emulated.names()))
    multiply = python(tiles.multiply, amx=sweep)
    whole = python(
        tiles._tile, _score=python(tiles._score, multiply=multiply), _gather=python(tiles._gather, multiply=multiply)
    )
    units = python(tiles.attend_units, _tile=whole)

    def on_team(config, given, cuts):
        units(config, *given, 0, cuts[-1], np.empty(tiles.workspace_words(given[2]), np.uint32))

    made = types.FunctionType(calls.attend.__code__, calls.attend.__globals__ | {"_on_team": on_team})
    return lambda *arguments: made(*arguments, "amx", None, begins=False, out=None)


@pytest.mark.parametrize("n_queries, n_keys, d, causal", [(5, 70, 24, None), (40, 90, 32, 3), (33, 33, 64, 0)])
def test_tiles_of_amx_with_emulated_instructions(n_queries, n_keys, d, causal):
    emulated = Tiles()
    q, k, v = normal(2, n_queries, d), normal(1, n_keys, d, seed=1), normal(1, n_keys, d, seed=2)
    check(q / np.float32(d**0.5), [(k, v, normal(n_keys), None)], causal, with_emulated_tiles(emulated))
    assert emulated.configured == 0


_COMPILED_FOR_AMX = """
from numba import types
from astra_mpi.kernels.cpu.flash import tiles
i, config, sums = types.int64, types.Array(types.uint8, 1, "C"), types.Array(types.float32, 2, "C")
tiles.multiply.compile((config, i, i, i, i, i, i, sums, i, i))
print(*("tdpbf16ps" in asm for asm in tiles.multiply.inspect_asm().values()))
"""


def test_products_of_attention_compile_for_tiles_of_amx(tmp_path):
    """For a CPU with AMX, whatever this one is; it is not run here."""
    features = "+amx-tile,+amx-bf16,+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512bf16,+avx2,+fma,+bmi,+bmi2"
    settings = {"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _COMPILED_FOR_AMX]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=90)
    assert done.stdout == "True\n", done.stderr
