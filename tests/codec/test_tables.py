"""Projected codebooks = decode, normalise, project (float64), for every kind, norm and site; counted keys."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_mpi.codec import tables
from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.tables import Norm, Projection, distinct, make_far
from astra_mpi.errors import InputError
from astra_mpi.kernels import cpu, reference

EPS32 = np.finfo(np.float32).eps
KERNELS = {"reference": reference, "cpu": cpu}


def decoded64(book, codes):
    """x^ (n, D) in float64, straight from the definition."""
    parts = [book.entries[c].astype(np.float64)[codes[:, c]] for c in range(book.n_codes)]
    return np.concatenate(parts, axis=1)[:, : book.width] if book.kind == "grouped" else np.sum(parts, axis=0)


def far_kv64(book, projection, codes):
    """[K^ | V^] (n, 2 d_kv) in float64, and the scale of what is summed for it."""
    x = decoded64(book, codes)
    norm = projection.norm
    if norm is not None:
        centred = x - x.mean(axis=1, keepdims=True) if norm.centred else x
        x = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + norm.eps) * norm.weight
        x = x + (0 if norm.bias is None else norm.bias)
    weight = projection.weight.astype(np.float64)
    return x @ weight + projection.bias, float(np.sqrt((x**2).sum(axis=1).max() * (weight**2).sum(axis=0).max()) + 1)


def problem(kind, width, n_codes, size, norm, offset=0.0, seed=0):
    """A codebook of unit spread around `offset`, a projection behind `norm`, and 17 random code rows."""
    rng = np.random.default_rng(seed)
    w = -(-width // n_codes) if kind == "grouped" else width
    entries = rng.standard_normal((n_codes, size, w), dtype=np.float32)
    if kind == "grouped":
        entries += np.float32(offset)
    else:
        entries[0] += np.float32(offset)
    weight, bias, gain, shift = (
        rng.standard_normal(shape, dtype=np.float32) for shape in ((width, 10), 10, width, width)
    )
    norms = {"none": None, "layer": Norm(True, gain, shift, 1e-5), "rms": Norm(False, gain, None, 1e-6)}
    codes = rng.integers(0, size, (17, n_codes)).astype(np.uint8 if size <= 256 else np.uint16)
    return Codebook(kind, entries, width), Projection(norms[norm], weight, bias), codes


def check(how, book, projection, codes, kernels, headroom=1.0):
    expected, scale = far_kv64(book, projection, codes)
    far = make_far(how, BlockCodec((book,)), "hidden", projection).far_kv(codes, kernels)
    assert far.dtype == np.float32
    np.testing.assert_allclose(far, expected, rtol=0, atol=32 * EPS32 * scale * headroom)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["grouped", "residual"]),
    width=st.integers(2, 21),
    n_codes=st.integers(1, 6),
    size=st.sampled_from([1, 2, 9, 300]),
    norm=st.sampled_from(["none", "layer", "rms"]),
    kernels=st.sampled_from(sorted(KERNELS)),
    seed=st.integers(0, 1000),
)
def test_table_equals_gemm_equals_float64(kind, width, n_codes, size, norm, kernels, seed):
    book, projection, codes = problem(kind, width, n_codes, size, norm, seed=seed)
    x = decoded64(book, codes)
    spread = x.std(axis=1).min() if norm == "layer" else np.sqrt((x**2).mean(axis=1).min())
    cancelled = 1.0 if norm == "none" else max(1.0, 2 / (spread + 1e-3))  # tokens near zero magnify the rounding of x^
    for how in ("table", "gemm"):
        check(how, book, projection, codes, KERNELS[kernels], cancelled * np.sqrt(n_codes))


@pytest.mark.parametrize("kind", ["grouped", "residual"])
@pytest.mark.parametrize("n_codes", [1, 4, 16])
def test_layer_norm_tables_remove_a_common_offset(kind, n_codes):
    """Offset 100 times the spread: measured 0.1 eps times the scale; by GEMM on the same codes 2 to 4."""
    book, projection, codes = problem(kind, 384, n_codes, 50, "layer", offset=100.0)
    check("table", book, projection, codes, cpu, headroom=1 / 32)


def test_residual_sigma_without_gram_tables(monkeypatch):
    monkeypatch.setattr(tables, "GRAM_LIMIT_BYTES", 0)
    for norm in ("layer", "rms"):
        check("table", *problem("residual", 30, 3, 50, norm), kernels=cpu, headroom=4.0)


def test_gram_tables_are_used_up_to_their_limit():
    """3 stages of 50 entries need 90 kB of Gram tables: sigma then costs no pass over the vectors."""

    class NoDecode:
        table_sum, gram_sum = staticmethod(cpu.table_sum), staticmethod(cpu.gram_sum)

    check("table", *problem("residual", 30, 3, 50, "layer"), kernels=NoDecode, headroom=4.0)


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("kind", ["grouped", "residual"])
def test_one_code_has_finished_rows(kind, norm):
    book, projection, codes = problem(kind, 13, 1, 40, norm)
    far = make_far("table", BlockCodec((book,)), "hidden", projection)
    assert far.rows.shape == (40, 10)
    expected, scale = far_kv64(book, projection, np.arange(40)[:, None])
    np.testing.assert_allclose(far.rows, expected, rtol=0, atol=4 * EPS32 * scale)
    np.testing.assert_array_equal(far.far_kv(codes, cpu), far.rows[codes[:, 0]])


def test_several_codes_have_none():
    book, projection, _ = problem("grouped", 12, 2, 8, "none")
    assert make_far("table", BlockCodec((book,)), "hidden", projection).rows is None


@pytest.mark.parametrize("how", ["table", "gemm"])
def test_site_kv_is_decoding(how):
    rng = np.random.default_rng(5)
    books = tuple(Codebook("grouped", rng.standard_normal((3, 9, 2), dtype=np.float32), 5) for _ in range(2))
    _, projection, _ = problem("grouped", 5, 3, 9, "layer")
    codes = rng.integers(0, 9, (11, 6)).astype(np.uint8)
    far = make_far(how, BlockCodec(books), "kv", projection)
    expected = np.concatenate([decoded64(books[0], codes[:, :3]), decoded64(books[1], codes[:, 3:])], axis=1)
    np.testing.assert_array_equal(far.far_kv(codes, cpu), expected.astype(np.float32))
    assert far.rows is None


@pytest.mark.parametrize("how", ["table", "gemm"])
@pytest.mark.parametrize("n_codes", [1, 2])
def test_no_far_tokens(how, n_codes):
    book, projection, codes = problem("residual", 6, n_codes, 8, "layer")
    assert make_far(how, BlockCodec((book,)), "hidden", projection).far_kv(codes[:0], cpu).shape == (0, 10)


def test_unknown_way():
    book, projection, _ = problem("residual", 6, 1, 8, "none")
    with pytest.raises(InputError, match="use table or gemm"):
        make_far("fast", BlockCodec((book,)), "hidden", projection)


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
def test_distinct_codes_and_their_log_counts(kernels):
    codes = np.array([3, 0, 3, 3, 7, 0], np.uint8)[:, None]
    values, log_counts = distinct(codes, 9, kernels)
    np.testing.assert_array_equal(values, [0, 3, 7])
    np.testing.assert_allclose(log_counts, np.log([2, 3, 1]), rtol=1e-6)
    assert log_counts.dtype == np.float32
    assert len(distinct(codes[:0], 9, kernels)[0]) == 0


@pytest.mark.parametrize("kind", ["grouped", "residual"])
@pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)
def test_halved_tables(kind, kernels):
    """In bfloat16 each row of a table errs by half a unit of its own; one code alone keeps its rows."""
    book, projection, codes = problem(kind, 24, 3, 50, "layer")
    exact, halved = (make_far("table", BlockCodec((book,)), "hidden", projection) for _ in range(2))
    halved.halve()
    assert halved.tables.nbytes * 2 == exact.tables.nbytes
    sigma = np.sqrt(exact.sigma2(codes, kernels) + exact.eps)
    bound = 2.0**-8 * abs(exact.tables)[np.arange(3), codes].sum(axis=1) / sigma[:, None] + 1e-5
    error = abs(halved.far_kv(codes, kernels) - exact.far_kv(codes, kernels))
    assert (error <= bound).all()
    assert error.max() > 2.0**-12
    one = make_far("table", BlockCodec((problem(kind, 24, 1, 50, "layer")[0],)), "hidden", projection)
    rows = one.rows
    one.halve()
    assert one.rows is rows
