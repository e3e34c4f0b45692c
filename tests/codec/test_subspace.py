"""The subspace encoder: what it finds, how it is chosen, stored and refused."""

import dataclasses

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_mpi.calibrate import fit_codec
from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.fit import fit_codebook
from astra_mpi.codec.subspace import MAX_GROWTH, with_subspace
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.files.codecfile import read_codebooks, write_codebooks
from astra_mpi.job.info import describe
from astra_mpi.kernels import cpu, reference
from astra_mpi.oracle.reference import oracle
from astra_mpi.oracle.tolerance import FLOAT32
from astra_mpi.oracle.verify import verify
from helpers.fakes import bert_config, model_file, random_basis, random_codec, squared_error

D = 120  # no multiple of 16


def correlated(n, seed, offset=0.0):
    """(n, D) samples, standard deviations falling as 0.97^j along random directions."""
    directions = random_basis(np.random.default_rng(99), D, D)
    z = np.random.default_rng(seed).normal(size=(n, D)) * 0.97 ** np.arange(D)
    return (z @ directions.T + offset).astype(np.float32)


def random_book(rng, kind="residual", n_codes=3, n_entries=20, basis=None):
    return Codebook(kind, rng.normal(size=(n_codes, n_entries, D)).astype(np.float32), D, basis)


def distances(book, x, codes):
    """(n, C) of each stage's entry to what the stages before left, in float64."""
    left, found = x.astype(np.float64), []
    for stage in range(book.n_codes):
        left = left - book.entries[stage, codes[:, stage]]
        found.append((left**2).sum(axis=1))
    return np.stack(found, axis=1)


@settings(deadline=None)  # the first call compiles
@given(seed=st.integers(0, 2**32 - 1), n_codes=st.integers(1, 4))
def test_a_square_basis_is_the_exact_search(seed, n_codes):
    """A rotation keeps distances: codes differ in ties of rounding size at most."""
    rng = np.random.default_rng(seed)
    exact = random_book(rng, n_codes=n_codes)
    turned = dataclasses.replace(exact, basis=random_basis(rng, D, D))
    x = rng.normal(size=(17, D)).astype(np.float32)
    a, b = exact.encode(x, cpu), turned.encode(x, cpu)
    differ = (a != b).any(axis=1)
    first = (a != b).argmax(axis=1)[differ]  # the stages after it quantise different rests
    rows = np.flatnonzero(differ), first
    np.testing.assert_allclose(distances(exact, x, a)[rows], distances(exact, x, b)[rows], rtol=1e-5)
    assert differ.mean() < 0.2


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize(("kind", "n_codes"), [("grouped", 1), ("residual", 1), ("residual", 3)])
def test_codes_are_nearest_after_projection(kernels, kind, n_codes):
    rng = np.random.default_rng(1)
    basis = random_basis(rng, D, 11)
    book = random_book(rng, kind, n_codes, 300, basis)
    x = rng.normal(size=(13, 2 * D)).astype(np.float32)[:, :D]  # rows apart in memory
    codes = book.encode(x, kernels)
    left = x.astype(np.float64)
    for stage in range(n_codes):
        away = ((left[:, None] - book.entries[stage]) @ basis.astype(np.float64)) ** 2
        np.testing.assert_array_equal(codes[:, stage], away.sum(axis=2).argmin(axis=1))
        left = left - book.entries[stage, codes[:, stage]]
    assert codes.dtype == np.uint16
    in_full = dataclasses.replace(book, basis=None)
    np.testing.assert_array_equal(book.decode(codes, kernels), in_full.decode(codes, kernels))


def growth(exact, book, x):
    return squared_error(book, x, cpu) / squared_error(exact, x, cpu) - 1


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize(
    "config", [CodecConfig(kind="grouped", codebook_size=128), CodecConfig(stages=3, codebook_size=64)]
)
def test_error_grows_by_one_percent_at_most(config, offset):
    """And by little more on vectors that neither the entries nor the subspace were chosen by."""
    x, held_out, fresh = (correlated(n, seed, offset) for seed, n in enumerate((4096, 2048, 2048)))
    exact = fit_codebook(x, config, 0, cpu)
    book = with_subspace(exact, x, held_out, "auto", cpu)
    as_wide, narrower = (dataclasses.replace(exact, basis=basis) for basis in (book.basis, book.basis[:, :-16]))
    assert growth(exact, as_wide, held_out) <= MAX_GROWTH < growth(exact, narrower, held_out)
    assert growth(exact, book, fresh) < growth(exact, as_wide, fresh) < 2 * MAX_GROWTH  # entries were refitted
    assert growth(exact, book, held_out) == pytest.approx(book.error_growth, abs=1e-9)


def test_auto_stays_exact_without_a_cheaper_subspace():
    flat = np.random.default_rng(0).normal(size=(3000, D)).astype(np.float32)  # every direction counts
    exact = fit_codebook(flat[:2000], CodecConfig(stages=2, codebook_size=64), 0, cpu)
    assert with_subspace(exact, flat[:2000], flat[2000:], "auto", cpu) is exact
    forced = with_subspace(exact, flat[:2000], flat[2000:], "subspace", cpu)
    assert forced.basis.shape[1] > D // 2
    assert forced.error_growth <= MAX_GROWTH
    few = Codebook("residual", exact.entries[:1, :4], D)  # projecting costs more than searching 4 entries
    x = correlated(2000, 0)
    assert with_subspace(few, x, x, "auto", cpu) is few


def test_nothing_held_out():
    x = correlated(4, 0)
    book = fit_codebook(x, CodecConfig(stages=1, codebook_size=256), 0, cpu)
    assert with_subspace(book, x, x[:0], "auto", cpu) is book
    with pytest.raises(InputError, match="too few activations"):
        with_subspace(book, x, x[:0], "subspace", cpu)


@pytest.mark.parametrize("encoder", ["auto", "exact", "subspace"])
@pytest.mark.parametrize("site", ["hidden", "kv"])
def test_calibration_obeys_the_encoder(site, encoder):
    config = bert_config(d_model=48, d_ff=40)
    file = model_file(config)
    batches = [random_batch(config, 8, 20, seed=i) for i in range(9)]
    codec = fit_codec(file, batches, CodecConfig(site, stages=1, codebook_size=64, encoder=encoder), n_samples=1024)
    books = [book for block in codec.blocks for book in block.codebooks]
    if encoder == "subspace":
        assert all(book.error_growth <= MAX_GROWTH and book.basis.shape[0] == 48 for book in books)
    if encoder == "exact":
        assert all(book.basis is None if site == "kv" else book.basis.shape == (48, 48) for book in books)
    assert codec.config.encoder == ("subspace" if any(book.narrow for book in books) else "exact")
    assert codec.exact().config.encoder == "exact"


def test_groups_have_no_subspace():
    with pytest.raises(InputError, match="not 2 groups; use auto or exact"):
        CodecConfig(kind="grouped", groups=2, encoder="subspace")
    config = CodecConfig(kind="grouped", groups=2, codebook_size=8)
    file, batch = model_file(bert_config()), random_batch(bert_config(), 8, 20, seed=0)
    assert fit_codec(file, [batch], config, n_samples=64).config.encoder == "exact"
    with pytest.raises(InputError, match="unknown; use one of auto, exact, subspace"):
        CodecConfig(encoder="fast")


def bad_bases():
    rng = np.random.default_rng(0)
    good = random_basis(rng, D, 8)
    nan = good.copy()
    nan[3, 4] = np.nan
    return {
        "rows": (good[1:], "shape"),
        "columns": (np.zeros((D, D + 1)), "shape"),
        "empty": (good[:, :0], "shape"),
        "flat": (good[:, 0], "shape"),
        "nan": (nan, "NaN"),
        "huge": (good * 1e25, "too large"),
    }


@pytest.mark.parametrize("bad", bad_bases())
def test_refused_bases(bad):
    basis, says = bad_bases()[bad]
    with pytest.raises(InputError, match=says):
        random_book(np.random.default_rng(1), basis=basis)


def test_a_basis_is_refused_for_groups():
    with pytest.raises(InputError, match="several groups"):
        Codebook("grouped", np.ones((2, 3, 4), np.float32), 8, np.eye(8, 2))


SUBSPACE = CodecConfig(stages=2, codebook_size=7, encoder="subspace")


@pytest.fixture
def stored(tmp_path):
    codec = random_codec(bert_config(), SUBSPACE)
    write_codebooks(tmp_path / "c.h5", codec, "abc", {})
    return tmp_path / "c.h5", codec


def test_bases_come_back(tmp_path):
    """Also where a block's keys have a subspace and its values have none."""
    codec = random_codec(bert_config(), dataclasses.replace(SUBSPACE, site="kv"))
    keys, values = codec.blocks[1].codebooks
    keys = dataclasses.replace(keys, error_growth=0.0025)
    values = dataclasses.replace(values, basis=None)
    mixed = Codec(codec.config, (codec.blocks[0], BlockCodec((keys, values))))
    write_codebooks(tmp_path / "c.h5", mixed, "abc", {})
    back = read_codebooks(tmp_path / "c.h5", "abc")
    assert back.digest == mixed.digest
    got = back.blocks[1].codebooks
    np.testing.assert_array_equal(got[0].basis, keys.basis)
    assert got[0].error_growth == 0.0025
    assert got[1].basis is None
    with h5py.File(tmp_path / "c.h5") as file:
        assert set(file["codec/1"]) == {"keys", "values", "keys_subspace"}
    facts = describe(tmp_path / "c.h5")["codec"]
    assert (facts["encoder"], facts["subspace_widths"]) == ("subspace", [15, 15, 15, None])
    assert facts["subspace_error_growth"] == 0.0025


def _poke(value):
    return lambda file: file["codec/1/subspace"].__setitem__((0, 0), value)


def _put(array):
    def damage(file):
        del file["codec/1/subspace"]
        file["codec/1/subspace"] = array
        file["codec/1/subspace"].attrs["error_growth"] = 0.0

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_poke(np.nan), "NaN"),
        (_poke(1e30), "too large"),
        (_put(np.eye(24, 3, dtype="f4")), "checksum"),
        (_put(np.eye(23, 3, dtype="f4")), r"shape \(23, 3\)"),
        (_put(np.eye(24, 3)), "float64"),
        (lambda f: f.__delitem__("codec/1/subspace"), "checksum"),
        (lambda f: f["codec/1/subspace"].attrs.__delitem__("error_growth"), "no number attribute 'error_growth'"),
    ],
)
def test_damaged_bases_are_refused(stored, damage, message):
    path, _ = stored
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(InputError, match=message) as caught:
        read_codebooks(path, "abc")
    assert "c.h5" in str(caught.value)


def test_digest_sees_the_basis(stored):
    _, codec = stored
    exact = codec.exact()
    assert exact.config.encoder == "exact"
    assert exact.digest != codec.digest
    for a, b in zip(exact.blocks, codec.blocks, strict=True):
        assert a.codebooks[0].basis is None
        np.testing.assert_array_equal(a.codebooks[0].entries, b.codebooks[0].entries)
    other = dataclasses.replace(codec.blocks[0].codebooks[0], basis=np.eye(24, 15))
    assert Codec(codec.config, (BlockCodec((other,)), codec.blocks[1])).digest != codec.digest


@pytest.mark.parametrize("site", ["hidden", "kv"])
def test_the_oracle_judges_by_projected_distances(site):
    """Its own codes are the encoder's, and the exact search's are counted as wrong."""
    config = bert_config()
    file = model_file(config, dataclasses.replace(SUBSPACE, site=site, stages=1, codebook_size=64))
    ids, owner = np.arange(12), np.repeat([0, 1], 6)
    own = oracle(config, file.weights, ids, owner, 2, codec=file.codec)
    exact = oracle(config, file.weights, ids, owner, 2, codec=file.codec.exact())
    assert (own.codes[0] != exact.codes[0]).any()
    judged = oracle(config, file.weights, ids, owner, 2, codec=file.codec, codes=exact.codes)
    assert judged.flips > 0
    assert judged.worst_gap > 100 * FLOAT32.gap


@pytest.mark.mpi
def test_wrong_basis_on_one_rank_is_found(comm):
    config = bert_config()
    file = model_file(config, dataclasses.replace(SUBSPACE, codebook_size=64))
    if comm.rank == comm.size - 1:
        first = dataclasses.replace(file.codec.blocks[0].codebooks[0], basis=np.eye(24, 15))
        file = dataclasses.replace(file, codec=Codec(file.codec.config, (BlockCodec((first,)), file.codec.blocks[1])))
    model = Model(file, comm, get_backend("numpy", comm))
    inputs, mask = random_batch(config, 2, 17, seed=0, ragged=True)
    checks = verify(model, inputs, mask, ["astra"])
    if comm.rank == 0:
        assert checks[0].passed == (comm.size == 1)
        assert comm.size == 1 or "nearest" in checks[0].reason
    comm.Barrier()
