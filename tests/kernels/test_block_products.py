"""Products with weights in blocks: every path of the CPU against the specification, and the same to the bit."""

import numpy as np
import pytest

from astra_mpi.kernels import blocks as specified
from astra_mpi.kernels.blocks import BLOCK_KINDS, RECORDS, Layer
from astra_mpi.kernels.cpu import _blocks as cpu
from astra_mpi.kernels.cpu import _rows, _team
from astra_mpi.kernels.cpu._block_amx import configuration
from astra_mpi.kernels.cpu._block_amx_strips import amx_strips
from astra_mpi.kernels.cpu._block_floats import times_blocks
from astra_mpi.kernels.cpu._block_portable import portable_strips
from astra_mpi.kernels.cpu._block_strips import tiled_strips
from astra_mpi.kernels.cpu._features import has

KINDS = pytest.mark.parametrize("kind", BLOCK_KINDS)
#: of 32-bit floats: what sums of as many blocks may be off, of the sum of magnitudes
EPS = np.finfo(np.float32).eps
PATHS = {"portable": portable_strips} | ({"tiles": tiled_strips} if cpu.HAS_TILES else {})
HAS_AMX = cpu.HAS_TILES and has("int8", "amx")
TILES = configuration()


def amx_or_tiled(kind, m, *rest):
    """As `multiply_blocks` chooses, but for where AMX begins to gain."""
    if m < 32:
        tiled_strips(kind, m, *rest)
    else:
        amx_strips(TILES.ctypes.data, kind, m, *rest)


if HAS_AMX:
    PATHS["amx"] = amx_or_tiled


def weights(kind, n, n_blocks, seed=0):
    """Every number that a block may hold, and factors of both signs; what is beyond n is 0."""
    rng = np.random.default_rng([seed, n, n_blocks])
    records = np.zeros((-(-n // 32) * 2, n_blocks), RECORDS[kind])
    records["numbers"] = rng.integers(1, 256, records["numbers"].shape)
    for name in set(records.dtype.names) - {"numbers"}:
        outputs = rng.standard_normal((len(records) * 16, n_blocks)).astype(np.float16)
        outputs[n:] = 0
        records[name] = outputs.reshape(len(records), 16, n_blocks).swapaxes(1, 2)
    return records.view(np.uint8).reshape(*records.shape, -1)


def rows_of(m, k, seed=1):
    x = np.random.default_rng([seed, m, k]).standard_normal((m, k)).astype(np.float32)
    x[m // 2, :32] = 0
    return x


def product(strips, kind, rows, stored, n, share=(0, 1), out=None):
    q, scales, sums = rows
    out = np.empty((len(q), n), np.float32) if out is None else out
    arrays = (part.ctypes.data for part in (q, scales, sums, stored))
    strips(BLOCK_KINDS.index(kind), *q.shape, *arrays, n, out.ctypes.data, out.strides[0], *share)
    return out


@KINDS
@pytest.mark.parametrize("n", [1, 16, 45, 96])
def test_widening_is_exact(kind, n):
    stored = weights(kind, n, 3)
    whole = specified.widen_blocks(kind, stored, 0, np.empty((96, n), np.float32))
    assert (cpu.widen_blocks(kind, stored, 0, np.empty((96, n), np.float32)) == whole).all()
    for first in range(16, n, 16):
        part = cpu.widen_blocks(kind, stored, first, np.empty((96, n - first), np.float32))
        assert (part == whole[:, first:]).all()


def test_rows_become_blocks_as_specified():
    x = rows_of(40, 96) * np.exp2(np.arange(40, dtype=np.float32)[:, None] * 6 - 120)
    x[3, 40], x[5, 70] = np.nan, np.inf
    for ours, theirs in zip(cpu.quantise_rows(x), specified.quantise_rows(x), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    q, scales, _ = cpu.quantise_rows(x)
    assert np.isnan(scales[3, 1]) and np.isnan(scales[5, 2]) and not np.isnan(scales[[3, 5], 0]).any()
    off = np.abs(q.reshape(40, 3, 32) * scales[..., None] - x.reshape(40, 3, 32))
    good = np.isfinite(scales)
    assert (off[good] <= np.maximum(0.5001 * scales[good][:, None], specified.LEAST)).all()


@KINDS
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", [7, 64, 77])
def test_products(kind, path, n):
    stored, x = weights(kind, n, 5), rows_of(260, 160)
    rows = cpu.quantise_rows(x)
    every = product(PATHS[path], kind, rows, stored, n)
    want = specified.multiply_blocks(kind, rows, stored, np.empty((260, n), np.float32))
    wide = np.abs(specified.widen_blocks(kind, stored, 0, np.empty((160, n), np.float32)).astype(np.float64))
    # stored numbers are multiplied before what was added to them is taken off, but their sums are exact
    assert (np.abs(every - want) <= 16 * EPS * (np.abs(x).astype(np.float64) @ wide)).all()
    for m in (0, 1, 3, 4, 6, 32, 33, 35):
        few = tuple(part[:m] for part in rows)
        padded = np.full((m, n + 3), np.nan, np.float32)
        product(PATHS[path], kind, few, stored, n, out=padded)
        assert (padded[:, :n] == every[:m]).all() and np.isnan(padded[:, n:]).all()
        shared = np.full((m, n), np.nan, np.float32)
        for index in range(3):
            product(PATHS[path], kind, few, stored, n, (index, 3), shared)
        assert (shared == every[:m]).all()


@KINDS
@pytest.mark.parametrize("n", [7, 77])
def test_products_of_float32_rows(kind, n):
    stored, x = weights(kind, n, 5), rows_of(13, 160)
    every = times_blocks(kind, x, stored, np.empty((13, n), np.float32))
    want = specified.times_blocks(kind, x, stored, np.empty((13, n), np.float32))
    wide = np.abs(specified.widen_blocks(kind, stored, 0, np.empty((160, n), np.float32)).astype(np.float64))
    # a least weight is added to sums that may be as large as it
    assert (
        np.abs(every - want) <= 32 * EPS * (np.abs(x).astype(np.float64) @ wide + np.abs(x).sum(axis=1)[:, None])
    ).all()
    for m in (0, 1, 3, 4, 6):
        padded = np.full((m, n + 3), np.nan, np.float32)
        times_blocks(kind, x[:m], stored, padded[:, :n])
        assert (padded[:, :n] == every[:m]).all() and np.isnan(padded[:, n:]).all()


@KINDS
def test_threads_change_nothing(kind):
    stored, rows = weights(kind, 333, 4), cpu.quantise_rows(rows_of(90, 128))
    one = cpu.multiply_blocks(kind, rows, stored, np.empty((90, 333), np.float32))
    _team.set_size(3)
    try:
        three = cpu.multiply_blocks(kind, rows, stored, np.full((90, 333), np.nan, np.float32))
    finally:
        _team.set_size(1)
    assert (one == three).all()


@KINDS
@pytest.mark.parametrize("m", [1, 30])
def test_the_choice_of_a_path(kind, m, monkeypatch):
    stored, x = weights(kind, 45, 2), rows_of(m, 64)
    rows = cpu.quantise_rows(x)
    want = specified.multiply_blocks(kind, rows, stored, np.empty((m, 45), np.float32))
    for has_tiles in {False, cpu.HAS_TILES}:
        monkeypatch.setattr(cpu, "HAS_TILES", has_tiles)
        monkeypatch.setattr(cpu, "multiply_strips", tiled_strips if has_tiles else portable_strips)
        found = cpu.multiply_blocks(kind, rows, stored, np.empty((m, 45), np.float32))
        assert np.abs(found - want).max() <= 64 * EPS * np.abs(want).max()


@pytest.mark.skipif(not HAS_AMX, reason="needs AMX")
@pytest.mark.parametrize(
    "kinds", [("q8_0", "q4_1"), ("q4_1", "q8_0"), ("q4_0", "q4_0"), ("q8_0", None), ("q4_1", None)]
)
@pytest.mark.parametrize(("m", "k", "n"), [(33, 32, 64), (48, 224, 96), (1500, 96, 32)])
def test_inner_activations_become_blocks_as_they_come(kinds, m, k, n):
    kind, gate_kind = kinds
    stored, bias = weights(kind, n, k // 32), rows_of(1, n)[0]
    x, made = rows_of(m, k), np.empty((m, n), np.float32)
    rows = cpu.quantise_rows(x)
    inner = cpu.multiply_blocks(kind, rows, stored, made)
    layer, gate = Layer(kind, stored, n, bias), None
    if gate_kind is None:
        _rows.activate(inner, bias, "gelu")
    else:
        gate = Layer(gate_kind, weights(gate_kind, n, k // 32, 2), n, None)
        gates = cpu.multiply_blocks(gate_kind, rows, gate.weights, np.empty((m, n), np.float32))
        _rows.activate_gated(inner, bias, gates, None, "gelu")
    for n_threads in (1, 3):
        _team.set_size(n_threads)
        try:
            found = cpu.activated_blocks(x, layer, gate, "gelu")
        finally:
            _team.set_size(1)
        for ours, theirs in zip(found, cpu.quantise_rows(inner), strict=True):
            np.testing.assert_array_equal(ours, theirs)
