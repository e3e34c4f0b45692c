"""Products in bfloat16 and int8 on packed weights against their specification, on each path that this CPU has."""

import os
import re
import subprocess
import sys
import types
from functools import partial

import numba
import numpy as np
import pytest

from astra_mpi.kernels import reference_products as reference
from astra_mpi.kernels._compile import compiled as compiled_function
from astra_mpi.kernels.aligned import aligned
from astra_mpi.kernels.cpu import _features, _team, bfloat16, int8
from astra_mpi.kernels.cpu.products import amx, by_tiles, calls, layout, speeds
from astra_mpi.kernels.cpu.products.rows import narrow_rows
from helpers import amx_tiles
from helpers.amx_tiles import Tiles

KERNELS = {"bfloat16": bfloat16, "int8": int8}
#: types whose products this CPU has instructions for
HERE = [kind for kind in KERNELS if any(_features.has(kind, way) for way in _features.PATHS[kind][:-1])]
#: types and paths that it has
WAYS = [(kind, way) for kind in KERNELS for way in _features.PATHS[kind][:-1] if _features.has(kind, way)]
SHAPES = [(0, 5, 3), (1, 1, 1), (1, 300, 130), (3, 64, 32), (5, 31, 33), (13, 100, 300), (37, 65, 64), (131, 1700, 40)]
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "quick_gelu")


@pytest.fixture
def team():
    """A function that sets the number of threads."""
    yield _team.set_size
    _team.set_size(1)


def numbers(*shape, seed=0):
    return np.random.default_rng([*shape, seed]).standard_normal(shape, dtype=np.float32)


def packed(kind, weight):
    strips = layout.empty(kind, *weight.shape)
    layout.pack(strips, 0, weight)
    return strips


def bound(x, weight, steepness=1.0):
    """Of float32 sums of k products in another order: sqrt(k) roundings of sums of sqrt(k) times a product, doubled."""
    size = np.abs(x).max(initial=0) * np.abs(weight).max(initial=0)
    return 4 * np.finfo(np.float32).eps * (1 + weight.shape[0] * size) * steepness


@pytest.mark.parametrize(("kind", "way"), WAYS)
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_layers_equal_the_specification(kind, way, m, k, n):
    """Rows of wider arrays, odd sizes, no rows; with bias, added, activated and gated."""
    x, weight, bias = numbers(m, k + 3)[:, 1:-2], numbers(k, n, seed=1), numbers(n, seed=2)
    layer, strips, near = partial(KERNELS[kind].layer, by=way), packed(kind, weight), bound(x, weight)
    words = reference.packed_words(weight, kind)
    assert (strips.words.view(words.dtype) == words.ravel()).all()
    out = np.full((m, n + 5), 7, np.float32)
    inside = out[:, 2:-3]
    np.testing.assert_allclose(layer(x, strips, inside), reference.layer(x, weight, kind), 0, near)
    twice = reference.layer(x, weight, kind) * 2 + bias
    np.testing.assert_allclose(layer(x, strips, inside, bias, add=True), twice, 0, 2 * near)
    act = ACTIVATIONS[m % len(ACTIVATIONS)]
    want = reference.layer(x, weight, kind, bias, act)
    np.testing.assert_allclose(layer(x, strips, inside, bias, act), want, 1e-6, 2 * near)
    gate, gate_bias = numbers(k, n, seed=3), numbers(n, seed=4)
    got = layer(x, strips, inside, bias, act, packed(kind, gate), gate_bias)
    want = reference.layer(x, weight, kind, bias, act, gate, gate_bias)
    largest = max(1, *(np.abs(reference.layer(x, w, kind)).max(initial=0) + 4 for w in (weight, gate)))
    np.testing.assert_allclose(got, want, 1e-6, 4 * near * largest)
    assert (out[:, :2] == 7).all() and (out[:, -3:] == 7).all()


@pytest.mark.parametrize("kind", HERE)
def test_rounding_is_exact_and_weights_come_back(kind):
    """Products with single ones give the rounded numbers themselves, ties, tiny and huge ones among them."""
    steps = np.float32(1) + np.arange(-40, 40, dtype=np.float32) / 512  # ties of bfloat16, and between
    x = np.concatenate([numbers(5, 80), steps[None], 1e30 * steps[None], 1e-41 * steps[None], 0 * steps[None]])
    one = np.eye(80, dtype=np.float32)
    got = KERNELS[kind].layer(x, packed(kind, one), np.empty((len(x), 80), np.float32))
    if kind == "bfloat16":
        assert (got[:-2] == reference.round_bfloat16(x)[:-2]).all()
    else:
        rows, factor = reference.quantise_rows(x)
        np.testing.assert_allclose(got, rows * factor, 1e-6, 0)
    assert (np.abs(got[-2:]) < 1e-38).all()
    weight = numbers(70, 50)
    weight[:, 3] = 0
    back = layout.unpack(packed(kind, weight))
    q, factor = reference.quantise_columns(weight)
    assert (back == (reference.round_bfloat16(weight) if kind == "bfloat16" else q * factor)).all()


@pytest.mark.parametrize("kind", HERE)
def test_what_is_not_finite_stays_so(kind):
    x, weight = numbers(14, 40), np.abs(numbers(40, 64, seed=1))
    x[2, 3], x[5, 7], x[9, 0] = np.nan, np.inf, -np.inf
    got = KERNELS[kind].layer(x, packed(kind, weight), np.empty((14, 64), np.float32))
    assert np.isnan(got[2]).all()
    assert (np.isnan(got[[5, 9]]) if kind == "int8" else got[[5, 9]] == np.array([[np.inf], [-np.inf]])).all()
    assert np.isfinite(np.delete(got, [2, 5, 9], axis=0)).all()


@pytest.mark.parametrize("kind", HERE)
@pytest.mark.parametrize("m", [1, 32, 130])
def test_threads_and_two_layers_at_once_change_no_bit(kind, m, team, monkeypatch):
    monkeypatch.setattr(calls, "_LEAST_WORK", 0)  # however little there is to do
    x, x_0 = numbers(m, 96), numbers(m, 48, seed=5)
    shapes = (96, 330), (96, 330), (330, 48)
    inner, gate, outer = (packed(kind, numbers(*shape, seed=seed)) for seed, shape in enumerate(shapes))
    kernels, found = KERNELS[kind], []
    for size in (1, 2, 3):
        team(size)
        for gates in ((None, None), (gate, numbers(330, seed=1))):
            between = kernels.layer(x, inner, np.empty((m, 330), np.float32), numbers(330), "gelu", *gates)
            apart = kernels.layer(between, outer, x_0.copy(), numbers(48), add=True)
            at_once = kernels.two_layers(
                x, inner, numbers(330), "gelu", *gates, outer, numbers(48), x_0.copy(), add=True
            )
            assert (apart == at_once).all()
            found.append(at_once)
    assert all((a == b).all() for a, b in zip(found[2:], found, strict=False))
    assert not (found[0] == found[1]).all()


@pytest.mark.parametrize("kind", HERE)
def test_a_row_does_not_depend_on_those_beside_it(kind):
    """Tiles of 12, 8, 4 and 1 rows, and panels of them, add up in the same order."""
    x, strips = numbers(230, 500), packed(kind, numbers(500, 70, seed=1))
    whole = KERNELS[kind].layer(x, strips, np.empty((230, 70), np.float32))
    for rows in (slice(0, 1), slice(7, 9), slice(3, 9), slice(100, 112), slice(40, 171)):
        part = KERNELS[kind].layer(x[rows], strips, np.empty((len(x[rows]), 70), np.float32))
        assert (part == whole[rows]).all()


def test_bfloat16_is_as_near_as_pytorch():
    torch = pytest.importorskip("torch")
    x, weight = numbers(64, 768), numbers(768, 128, seed=1)
    if "bfloat16" not in HERE:
        pytest.skip("no instruction for bfloat16")
    got = bfloat16.layer(x, packed("bfloat16", weight), np.empty((64, 128), np.float32))
    theirs = (torch.from_numpy(x).bfloat16() @ torch.from_numpy(weight).bfloat16()).float().numpy()
    exact = x.astype(np.float64) @ weight
    error, other = (np.linalg.norm(y - exact) / np.linalg.norm(exact) for y in (got, theirs))
    assert error <= other and error < 2.0**-8


@pytest.mark.skipif("avx512f" not in _features.features(), reason="lines are vectors of AVX-512")
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize(("m", "k"), [(1, 20), (17, 64), (33, 1601)])
def test_rows_lie_in_tiles(kind, m, k):
    """Of every sixteen rows the first 64 bytes of each, then the next 64; zeros follow to the end of a row."""
    panel, x, factors, offsets = narrowed(kind, numbers(m, k + 2)[:, 1:-1])
    lines = panel.reshape(len(panel) // 16, -1, 16, 64 // panel.itemsize)
    rows = lines.transpose(0, 2, 1, 3).reshape(panel.shape)
    if kind == "bfloat16":
        want = (reference.round_bfloat16(x).view(np.uint32) >> 16).astype(np.uint16)
    else:
        want, factor = reference.quantise_rows(x)
        groups = [want[:, g : g + layout.GROUP].sum(axis=1) for g in range(0, k, layout.GROUP)]
        assert (offsets[:, :m] == layout.ZERO * np.array(groups)).all()
        np.testing.assert_allclose(np.repeat(factors[:, :m], layout.GROUP, axis=0)[:k].T, factor, 1e-6)
    assert (rows[:m, :k] == want).all() and (rows[:m, k:] == 0).all()


def narrowed(kind, x):
    """-> panel in tiles, x, factors, offsets."""
    m, k = x.shape
    n_words, groups = layout.n_words(kind, k), -(-k // layout.GROUP)
    width, dtype = (2, np.uint16) if kind == "bfloat16" else (4, np.int8)
    panel = aligned((-(-m // 32) * 32, n_words * width), dtype)
    panel[:] = 99
    factors, offsets = np.zeros((groups, len(panel)), np.float32), np.zeros((groups, len(panel)), np.int32)
    narrow(amx.configuration(), x.ctypes.data, x.strides[0], m, k, panel, factors, offsets)
    return panel, x, factors, offsets


@compiled_function()
def narrow(tiles, at, stride, n_rows, k, panel, factors, offsets):
    narrow_rows(tiles, at, stride, n_rows, k, panel, factors, offsets)


@pytest.mark.skipif("avx512f" not in _features.features(), reason="rows are narrowed by AVX-512")
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 20, 70), (17, 64, 32), (33, 1600, 40), (64, 200, 300)])
def test_the_kernel_for_tiles_with_emulated_instructions(kind, m, k, n):
    """What the instructions are given, in which order, and where their results go; no AMX core is needed."""
    tiles, weight, asked = Tiles(), numbers(k, n, seed=1), []
    asking = python(amx.block_asking, ask_line=asked.append, **tiles.names())
    block = python(amx.block, block_asking=asking)
    emulated = types.SimpleNamespace(block=block, block_asking=asking, from_word=amx.from_word.py_func)
    strips, (panel, x, factors, offsets) = packed(kind, weight), narrowed(kind, numbers(m, k))
    room = types.SimpleNamespace(counts=aligned((32, 32), np.int32), factors=factors, offsets=offsets)
    sums = np.full((len(panel), 16 * strips.n_strips), 3, np.float32)
    lie = panel.ctypes.data, 64, 1024, 16 * panel.strides[0]
    lines = {name: getattr(amx_tiles, name) for name in ("floats", "integers", "scale_line", "add_scaled_line")}
    add = by_tiles._floats if kind == "bfloat16" else by_tiles._integers
    add = python(add, amx=emulated, _scale=python(by_tiles._scale, **lines))
    step = by_tiles._WORDS if kind == "bfloat16" else by_tiles._GROUPS_WORDS
    for begin in range(0, strips.n_words, step):
        end = min(strips.n_words, begin + step)
        add(room, lie, 0, m, strips.words.ctypes.data, 64 * strips.n_words, begin, end, sums.shape[1], sums)
    got = sums[:m, :n] * strips.scale[:n]
    np.testing.assert_allclose(got, reference.layer(x, weight, kind), 0, bound(x, weight))
    within = range(strips.words.ctypes.data, strips.words.ctypes.data + strips.words.nbytes, 64)
    assert set(asked) <= set(within) and len(set(asked)) == len(asked)  # no line is asked for twice
    assert bool(asked) == (kind == "bfloat16" and (strips.n_strips > 2 or k > 384))


def python(kernel, **names):
    """A compiled function as Python, some of its names replaced."""
    return types.FunctionType(kernel.py_func.__code__, kernel.py_func.__globals__ | names)


_COMPILED_FOR_AMX = """
import re
from numba import types
from astra_mpi.kernels.cpu.products import by_tiles
i, number, narrow = types.int64, types.float32, types.Array(types.uint16, 2, "C")
sums, counts, lie = types.Array(number, 2, "C"), types.Array(types.int32, 2, "C"), types.UniTuple(i, 4)
from astra_mpi.kernels.cpu.products.parts import Room
room = types.NamedTuple((narrow, sums, sums, counts, sums, counts, *[types.Array(number, 1, "C")] * 3), Room)
for kernel in by_tiles._floats, by_tiles._integers:
    kernel.compile((room, lie, i, i, i, i, i, i, i, sums))
    for asm in kernel.inspect_asm().values():
        print(*sorted(set(re.findall(r"\\b(?:tdp\\w+|tile\\w+|ldtilecfg|vdp\\w+|vpdp\\w+)\\b", asm))))
"""


@pytest.mark.skipif("avx512f" not in _features.features(), reason="LLVM is asked for another CPU of this kind")
def test_the_kernel_for_tiles_compiles_to_their_instructions(tmp_path):
    """For a CPU with AMX, whatever this one is; it is not run here."""
    features = "+amx-tile,+amx-bf16,+amx-int8,+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx2,+fma,+bmi,+bmi2"
    settings = {"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILED_FOR_AMX], env=os.environ | settings, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{dot} tileloadd tilestored tilezero" for dot in ("tdpbf16ps", "tdpbsud")]


def test_a_path_is_told_and_can_be_forced(monkeypatch):
    _features.path.cache_clear()
    for kind in KERNELS:
        way = _features.path(kind)
        assert _features.has(kind, way.name)
        if way.name == "avx512_bf16":
            assert re.fullmatch(r".*vdpbf16ps has [\d.]+ times the speed of float32", way.why)
    assert _features.path("float32") == ("blas", "", "")
    monkeypatch.setenv(_features.FORCE, "widened")
    _features.path.cache_clear()
    assert [_features.path(kind).name for kind in KERNELS] == ["widened"] * 2
    monkeypatch.setenv(_features.FORCE, "tensor cores")
    _features.path.cache_clear()
    assert _features.path("int8").why.startswith("ASTRA_PRODUCTS=tensor cores is not available for int8 here")
    monkeypatch.undo()
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+avx2,+fma")
    for cached in (_features.features, _features.path):
        cached.cache_clear()
    assert [_features.path(kind).name for kind in KERNELS] == ["widened"] * 2
    monkeypatch.undo()
    _features.features.cache_clear()
    monkeypatch.setattr(_features, "features", lambda: frozenset({"amx-tile", "amx-int8", "avx512f"}))
    monkeypatch.setattr(_features, "tiles_refused", lambda: "the system refuses tiles")
    _features.path.cache_clear()
    assert _features.path("int8").told == "widened (the system refuses tiles)"
    monkeypatch.undo()
    _features.path.cache_clear()
    assert all(speeds.gflops(kind, 8, 64, 64, least_s=1e-4, laps=1) > 0 for kind in ("float32", *KERNELS))
