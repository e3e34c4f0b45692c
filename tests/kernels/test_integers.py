"""Products that are the same to the bit on every processor: each way of this CPU, and of others, as specified."""

import os
import subprocess
import sys

import numpy as np
import pytest

from astra_mpi.kernels import cpu, reference
from astra_mpi.kernels.cpu import _features, _integers, _team
from astra_mpi.kernels.integers import MOST, Integers, Moved, integers

WAYS = [way for way in ("amx", "widened") if _features.has("int8", way)]
#: rows, widths of their parts, outputs
SHAPES = [
    (1, [1], 1),
    (1, [300], 130),
    (15, [64], 16),
    (17, [31, 33], 15),
    (33, [256, 256], 33),
    (140, [300, 600, 1], 47),
]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    monkeypatch.setattr(_integers, "path", lambda kind: _features.Path(request.param, ""))
    return request.param


def normal(*shape, seed=0):
    return np.random.default_rng([*shape, seed]).standard_normal(shape, dtype=np.float32)


def problem(n, widths, m):
    parts = [normal(n, width, seed=i) for i, width in enumerate(widths)]
    return parts, normal(sum(widths), m, seed=9), Moved(normal(n, m, seed=10), 0.7, normal(m, seed=11))


def product(kernels, parts, weights, moved=None):
    return kernels.integer_product(parts, weights, np.empty((len(parts[0]), weights.shape[1]), np.float32), moved)


@pytest.mark.parametrize(("n", "widths", "m"), SHAPES)
def test_it_is_the_product(n, widths, m):
    """But for half a step of a row and of a weight, each the largest magnitude of its group over 32512."""
    parts, weight, moved = problem(n, widths, m)
    x, weights = np.concatenate(parts, axis=1).astype(np.float64), integers(weight)
    half_steps = (
        0.5
        / MOST
        * (np.abs(x).max() * np.abs(weight).sum(axis=0) + np.abs(weight).max() * np.abs(x).sum(axis=1)[:, None])
    )
    rounding = 8 * np.finfo(np.float32).eps * (np.abs(x) @ np.abs(weight) + np.abs(moved.state) + np.abs(moved.bias))
    exact = x @ weight
    assert (np.abs(product(reference, parts, weights) - exact) <= 1.01 * half_steps + rounding).all()
    exact += moved.keep * moved.state.astype(np.float64) + moved.bias
    assert (np.abs(product(reference, parts, weights, moved) - exact) <= 1.01 * half_steps + rounding).all()


@pytest.mark.parametrize(("n", "widths", "m"), [*SHAPES, (0, [5], 3), (9, [0], 5), (4, [5], 0)])
def test_every_way_gives_the_same_bits(way, n, widths, m):
    parts, weight, moved = problem(n, widths, m)
    weights = integers(weight)
    for given in (None, moved):
        np.testing.assert_array_equal(product(cpu, parts, weights, given), product(reference, parts, weights, given))


def test_a_row_is_the_same_in_any_company(way):
    (x,), weight, _ = problem(150, [70], 40)
    weights = integers(weight)
    whole = product(cpu, [x], weights)
    for first, last in ((0, 1), (3, 20), (140, 150)):
        np.testing.assert_array_equal(product(cpu, [x[first:last]], weights), whole[first:last])
    np.testing.assert_array_equal(product(cpu, [x[:, :30], x[:, 30:]], weights), whole)


def test_rows_that_are_not_ordinary(way):
    """Zeros, tiny, huge and extreme numbers; what is not finite spoils its row alone."""
    x, weights = normal(8, 300), integers(normal(300, 20, seed=1))
    x[0], x[1, :256], x[2], x[3] = 0, 1e-35, x[2] * 1e30, np.where(x[3] > 0, 2.0, -2.0)
    x[4, 7], x[5, 280], x[6, 0] = np.nan, np.inf, -np.inf
    found = product(cpu, [x], weights)
    np.testing.assert_array_equal(found, product(reference, [x], weights))
    assert np.isnan(found[4:7]).all() and np.isfinite(found[[0, 1, 2, 3, 7]]).all() and not found[0].any()


def test_extreme_weights(way):
    """The largest digits of rows and weights together do not overflow."""
    for sign in (1, -1):
        x, weight = np.full((3, 256), sign, np.float32), np.ones((256, 5), np.float32)
        weights = integers(weight)
        assert weights.high.max() == 127 and not weights.low.any()
        np.testing.assert_array_equal(product(cpu, [x], weights), product(reference, [x], weights))
        low = Integers(weights.high.copy(), np.full_like(weights.low, 127), weights.scale)
        np.testing.assert_array_equal(product(cpu, [x], low), product(reference, [x], low))
    zeros = integers(np.zeros((4, 2), np.float32))
    assert not product(cpu, [np.ones((2, 4), np.float32)], zeros).any()


def test_sizes_that_do_not_fit(way):
    parts, weight, _ = problem(4, [6, 5], 7)
    with pytest.raises(ValueError, match=r"rows \(\(4, 6\), \(4, 5\)\) times weights \(10, 7\) are not \(4, 7\)"):
        product(cpu, parts, integers(weight[:10]))
    with pytest.raises(ValueError, match="are not"):
        product(cpu, [parts[0], parts[1][:3]], integers(weight))


def test_read_only_arrays(way):
    parts, weight, moved = problem(20, [40], 24)
    want = product(cpu, parts, integers(weight), moved)
    weights = integers(weight)
    for array in (*parts, *weights, moved.state, moved.bias):
        array.flags.writeable = False
    np.testing.assert_array_equal(product(cpu, parts, weights, moved), want)


def test_threads_change_no_bit(way):
    parts, weight, moved = problem(333, [200, 200], 96)
    weights = integers(weight)
    alone = product(cpu, parts, weights, moved)
    try:
        for threads in (2, 3):
            _team.set_size(threads)
            np.testing.assert_array_equal(product(cpu, parts, weights, moved), alone)
    finally:
        _team.set_size(1)


_ELSEWHERE = """
import numpy as np
from astra_mpi.kernels import cpu, integers, reference
from astra_mpi.kernels.cpu import _pairs
x, weight = (np.random.default_rng(3).standard_normal(shape, dtype=np.float32) for shape in ((21, 530), (530, 37)))
weights = integers.integers(weight)
found, want = (kernels.integer_product([x], weights, np.empty((21, 37), np.float32)) for kernels in (cpu, reference))
print(np.array_equal(found, want), _pairs.ROWS)
"""


@pytest.mark.parametrize(
    ("name", "has", "rows"), [("haswell", "+avx2,+avx,+fma,+bmi,+bmi2,+sse4.2", 4), ("x86-64", "", 4)]
)
@pytest.mark.skipif("avx2" not in _features.features(), reason="code for AVX2 would not run here")
def test_other_processors_give_the_same_bits(tmp_path, name, has, rows):
    """Compiled for a CPU with vpmaddwd of AVX2, and for one without, in LLVM's words alone, as on Arm."""
    settings = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": has, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE], env=os.environ | settings, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["True", str(rows)], done.stderr
