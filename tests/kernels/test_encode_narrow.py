"""Search with products in bfloat16 finds the codes of float32, to the bit: its error only widens the choice."""

import numpy as np
import pytest

from astra_mpi.kernels import cpu, reference
from astra_mpi.kernels.cpu import _encode, _encode_narrow, _team
from astra_mpi.kernels.cpu.flash import calls
from astra_mpi.kernels.kept import Kept

pytestmark = pytest.mark.skipif(calls.used_path() == "widened", reason="the CPU has no AVX512-BF16")


def near_entries(kind, n, shape, seed=0):
    """x whose rows lie about as far from their entry as from zero, entries (C, K, W), and half their squared norms."""
    rng = np.random.default_rng([seed, n, *shape])
    entries = rng.standard_normal(shape, dtype=np.float32)
    parts = [of_code[rng.integers(0, shape[1], n)] for of_code in entries]
    x = sum(parts) if kind == "residual" else np.concatenate(parts, axis=1)
    return x + rng.standard_normal(x.shape, dtype=np.float32), entries


def half_norms(entries):
    return ((entries.astype(np.float64) ** 2).sum(axis=-1) / 2).astype(np.float32)


def encode(kernels, kind, x, entries):
    return getattr(kernels, f"encode_{kind}")(x, entries, half_norms(entries))


def narrow(kind, x, entries):
    """The codes that products in bfloat16 find."""
    return _encode_narrow.search(np.array(x), entries.shape[2] if kind == "grouped" else 0, entries)


@pytest.mark.parametrize("kind", ["grouped", "residual"])
@pytest.mark.parametrize("n", [0, 31, 32, 49, 130])
@pytest.mark.parametrize("shape", [(1, 300, 768), (3, 32, 33), (2, 77, 48), (4, 1024, 32)])
def test_codes_are_those_of_float32(kind, n, shape):
    x, entries = near_entries(kind, n, shape)
    for offset in (0, 100):  # what all vectors share is no error of their differences
        shifted = entries.copy()
        shifted[0] += offset
        y = x + np.float32(offset) if kind == "residual" else x + np.repeat(np.eye(1, shape[0])[0], shape[2]) * offset
        y = y.astype(np.float32)
        assert np.array_equal(narrow(kind, y, shifted), encode(_encode, kind, y, shifted))


@pytest.mark.parametrize("kind", ["grouped", "residual"])
def test_it_is_taken_where_it_pays(kind, monkeypatch):
    """Of 32 rows and entries of 64 numbers, or more, with codes of the same type as elsewhere, and x left alone."""
    taken, search = [], _encode_narrow.search
    monkeypatch.setattr(_encode_narrow, "search", lambda *given: taken.append(given) or search(*given))
    for n, shape in ((31, (2, 40, 64)), (32, (2, 31, 64)), (32, (2, 32, 63)), (32, (2, 32, 64)), (50, (1, 300, 100))):
        x, entries = near_entries(kind, n, shape)
        before = x.copy()
        codes, others = encode(cpu, kind, x, entries), encode(_encode, kind, x, entries)
        assert np.array_equal(codes, others) and codes.dtype == others.dtype and np.array_equal(x, before)
    assert len(taken) == 2


def test_near_ties_are_decided_by_the_exact_distance():
    """Entries that bfloat16 cannot tell apart: they differ from the nearest in the last bits of float32."""
    x, entries = near_entries("grouped", 64, (1, 256, 64))
    rng = np.random.default_rng(1)
    entries[0, 128:] = entries[0, :128] * (1 + rng.integers(-8, 9, (128, 64)) * np.float32(2.0**-23))
    codes = narrow("grouped", x, entries)
    assert np.array_equal(codes, encode(reference, "grouped", x, entries))
    assert len(np.unique(codes // 128)) == 2


def test_a_tie_is_decided_as_in_float32():
    """Entries as far from x, in exact numbers, whose float64 sums differ with their order."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        entries = 10 * rng.standard_normal((1, 32, 96), dtype=np.float32)
        entries[0, 0] /= 10
        entries[0, 1] = rng.permutation(entries[0, 0])
        x = np.zeros((32, 96), np.float32)
        assert np.array_equal(narrow("grouped", x, entries)[:31], encode(cpu, "grouped", x[:31], entries))


def test_entries_of_unlike_norms():
    """Each has an error of its own: with that of the smallest, codes would be lost."""
    x, entries = near_entries("grouped", 200, (1, 256, 96))
    entries *= np.float32(10) ** np.random.default_rng(2).uniform(-3, 3, (1, 256, 1)).astype(np.float32)
    x *= np.float32(10) ** np.random.default_rng(3).uniform(-3, 3, (200, 1)).astype(np.float32)
    codes = narrow("grouped", x, entries)
    assert np.array_equal(codes, encode(_encode, "grouped", x, entries)) and len(np.unique(codes)) > 30


@pytest.mark.parametrize(
    ("of_row", "of_entries"), [(1, (1 + 0.49 / 128, 1 - 1 / 128)), (1 + 0.49 / 128, (0.494, 1.508))]
)
def test_what_rounding_takes_from_rows_and_from_entries(of_row, of_entries):
    """Of two entries along a row, one is nearer in bfloat16 and the other one is: both kinds of loss have to count."""
    signs = np.sign(np.random.default_rng(0).standard_normal(64)).astype(np.float32)
    far = 8 * np.random.default_rng(1).standard_normal((15, 64), dtype=np.float32)
    some = np.concatenate([signs * np.float32(factor) for factor in of_entries]).reshape(2, 64)
    entries = np.concatenate([some, far, -some, -far])[None]  # whose mean is 0
    x = np.repeat(signs[None] * np.float32(of_row), 32, axis=0)
    assert np.array_equal(narrow("grouped", x, entries), encode(reference, "grouped", x, entries))


@pytest.mark.parametrize("scale", [1e-22, 1e-12, 1e12, 1e19, 1e20])
def test_any_magnitude(scale):
    """Also norms whose squares are beyond float32: then distances in float64 decide."""
    x, entries = (np.float32(scale) * z for z in near_entries("grouped", 40, (1, 100, 64)))
    assert np.array_equal(narrow("grouped", x, entries), [_nearest(row, entries[0]) for row in x.astype(np.float64)])
    x /= np.float32(scale)
    assert np.array_equal(narrow("grouped", x, entries), [_nearest(row, entries[0]) for row in x.astype(np.float64)])


def _nearest(row, entries):
    return [((row - entries) ** 2).sum(axis=1).argmin()]


def test_entries_may_lie_in_any_way():
    x, entries = near_entries("residual", 40, (2, 64, 96))
    other = np.asfortranarray(entries)
    assert np.array_equal(encode(cpu, "residual", x, other), encode(cpu, "residual", x, entries))


def test_equal_entries_give_the_lowest_index_and_nan_a_valid_code():
    x, entries = near_entries("grouped", 40, (1, 100, 64))
    entries[:] = entries[:, :1]
    assert not narrow("grouped", x, entries).any()
    x[3, 5] = np.nan
    assert narrow("grouped", x, entries).max() < 100


def test_entries_are_packed_once_and_forgotten_with_their_array(monkeypatch):
    x, entries = near_entries("residual", 40, (2, 100, 96))
    packed, kept = [], Kept(lambda of_codes: packed.append(1) or _encode_narrow._pack(of_codes))
    monkeypatch.setattr(_encode_narrow, "_packed", kept)
    codes = [encode(cpu, "residual", x, entries) for _ in range(3)]
    assert len(packed) == 1 and np.array_equal(codes[0], codes[2])
    del entries
    assert not kept.of


@pytest.mark.parametrize("kind", ["grouped", "residual"])
def test_threads_change_no_code(kind):
    x, entries = near_entries(kind, 300, (2, 256, 64))
    try:
        _team.set_size(3)
        codes = narrow(kind, x, entries)
    finally:
        _team.set_size(1)
    assert np.array_equal(codes, narrow(kind, x, entries))
