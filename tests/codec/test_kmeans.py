"""k-means and fitting: determinism, quality beside faiss, dead codes, few samples, refinement."""

import numpy as np
import pytest

from astra_mpi.calibrate import too_few
from astra_mpi.codec import fit
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.fit import fit_codebook
from astra_mpi.codec.kmeans import assign, kmeans, means
from astra_mpi.errors import InputError
from astra_mpi.kernels import cpu, reference
from helpers.fakes import squared_error

faiss = pytest.importorskip("faiss")


def correlated(n, width, seed=0):
    """Samples (n, width) whose spectrum falls like that of activations, in 40 overlapping clusters, off the origin."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((width, width)) / np.arange(1, width + 1)[:, None] ** 0.7
    centres = np.random.default_rng(98).standard_normal((40, width))
    return ((centres[rng.integers(0, 40, n)] + rng.standard_normal((n, width))) @ mix + 2).astype(np.float32)


def error(x, entries):
    return float(np.square(x - entries[assign(x, entries, cpu)], dtype=np.float64).sum())


def test_means_are_means():
    rng = np.random.default_rng(0)
    x, codes = rng.standard_normal((57, 5), dtype=np.float32), rng.choice([0, 2, 3], 57)
    old = rng.standard_normal((5, 5), dtype=np.float32)
    new, counts = means(x, codes, old, cpu)
    for k in range(5):
        expected = x[codes == k].mean(axis=0) if (codes == k).any() else old[k]
        np.testing.assert_array_equal(new[k], expected)  # added in order, as NumPy does: the same bits
    np.testing.assert_array_equal(counts, np.bincount(codes, minlength=5))


def test_same_seed_same_entries():
    x = correlated(1500, 24)
    np.testing.assert_array_equal(kmeans(x, 32, 7, cpu), kmeans(x, 32, 7, cpu))
    assert not np.array_equal(kmeans(x, 32, 7, cpu), kmeans(x, 32, 8, cpu))


@pytest.mark.parametrize(("n_entries", "width"), [(64, 48), (7, 3)])
def test_error_beside_faiss(n_entries, width):
    x = correlated(4000, width)
    theirs = faiss.Kmeans(width, n_entries, niter=25, seed=1, max_points_per_centroid=len(x))
    theirs.train(x)
    assert error(x, kmeans(x, n_entries, 1, cpu)) <= 1.03 * error(x, theirs.centroids)


def test_common_offset_does_not_move_the_result():
    x = correlated(2000, 16)
    spread = x.std()
    shifted = kmeans(x + 100 * spread, 32, 3, cpu) - 100 * spread
    assert error(x, shifted) == pytest.approx(error(x, kmeans(x, 32, 3, cpu)), rel=0.03)


def test_no_dead_codes_on_clustered_data_with_repeats():
    rng = np.random.default_rng(4)
    sizes = np.array([3000] + [5] * 63)  # random samples nearly all fall into the first, which is a single point
    x = np.repeat(rng.standard_normal((64, 8)), sizes, axis=0).astype(np.float32)
    entries = kmeans(x, 64, 0, cpu)
    assert len(np.unique(assign(x, entries, cpu))) == 64
    assert error(x, entries) < 1e-6 * np.square(x).sum()


@pytest.mark.parametrize("n", [1, 5, 8])
def test_no_more_samples_than_entries(n):
    x = correlated(n, 6)
    entries = kmeans(x, 8, 0, cpu)
    assert entries.shape == (8, 6)
    np.testing.assert_array_equal(assign(x, entries, cpu), np.arange(n))
    np.testing.assert_array_equal(entries[:n], x)


def test_fewer_distinct_samples_than_entries():
    x = np.repeat(correlated(5, 6), 20, axis=0)
    entries = kmeans(x, 16, 0, cpu)
    assert np.isfinite(entries).all()
    assert error(x, entries) < 1e-9 * np.square(x).sum()


@pytest.mark.parametrize(
    "config",
    [
        CodecConfig(kind="grouped", groups=4, codebook_size=32),
        CodecConfig(kind="grouped", groups=5, codebook_size=32),
        CodecConfig(kind="residual", stages=3, codebook_size=32),
    ],
    ids=["grouped", "padded", "residual"],
)
def test_fit_is_deterministic_complete_and_reports_progress(config):
    x = correlated(1200, 24)
    steps = []
    book = fit_codebook(x, config, 5, cpu, lambda done, total: steps.append((done, total)))
    again = fit_codebook(x, config, 5, cpu)
    assert (book.kind, book.n_codes, book.size, book.width) == (config.kind, config.n_codebooks, 32, 24)
    np.testing.assert_array_equal(book.entries, again.entries)
    assert steps == [(i + 1, config.n_codebooks) for i in range(config.n_codebooks)]
    rest = x - book.decode(book.encode(x, cpu), cpu)
    spread = np.square(x - x.mean(axis=0), dtype=np.float64).sum()
    assert squared_error(book, x, cpu) == pytest.approx(np.square(rest, dtype=np.float64).sum() / spread, rel=1e-4)
    assert squared_error(book, x, cpu) < 0.7


def test_residual_error_beside_faiss():
    x, held_out = correlated(6000, 32), correlated(2000, 32, seed=1)
    theirs = faiss.ResidualQuantizer(32, 3, 6)
    theirs.max_beam_size = 1  # greedy, as our encoder is
    theirs.train(x)
    their_book = Codebook("residual", faiss.vector_to_array(theirs.codebooks).reshape(3, 64, 32), 32)
    book = fit_codebook(x, CodecConfig(stages=3, codebook_size=64), 0, cpu)
    for samples in (x, held_out):
        assert squared_error(book, samples, cpu) <= 1.03 * squared_error(their_book, samples, cpu)


def test_each_stage_and_the_sweeps_lower_the_error(monkeypatch):
    x = correlated(3000, 32)

    def fitted_error(stages):
        return squared_error(fit_codebook(x, CodecConfig(stages=stages, codebook_size=32), 0, cpu), x, cpu)

    errors = [fitted_error(stages) for stages in (1, 2, 4)]
    assert errors[2] < 0.8 * errors[1] < 0.64 * errors[0]
    monkeypatch.setattr(fit, "SWEEPS", 0)
    assert errors[2] < 0.99 * fitted_error(4)


def test_refused_samples():
    config = CodecConfig(stages=1, codebook_size=4)
    with pytest.raises(InputError, match="no activations"):
        fit_codebook(np.empty((0, 4), np.float32), config, 0, cpu)
    with pytest.raises(InputError, match="NaN"):
        fit_codebook(np.full((9, 4), np.nan, np.float32), config, 0, cpu)


def test_fewer_samples_than_entries_are_repeated_and_the_repeats_not_chosen():
    x = np.random.default_rng(4).normal(size=(5, 3)).astype(np.float32)
    entries = kmeans(x, 16, 0, reference)
    assert entries.shape == (16, 3)
    np.testing.assert_array_equal(assign(x, entries, reference), np.arange(5))


@pytest.mark.parametrize(
    "n_tokens, wanted, n_entries, said",
    [
        (32768, 32768, 256, ""),
        (16384, 32768, 256, ""),
        (16383, 32768, 256, "256 entries; 32768 are better: F has no more, give more of it"),
        (32768, 32768, 1024, "1024 entries; 131072 are better: give --samples 131072"),
        (900, 9999, 1024, "1024 entries, with entries that repeat others; 131072 are better: F has no more, give more"
         " of it and give --samples 131072"),
    ],
)  # fmt: skip
def test_too_few_tokens(n_tokens, wanted, n_entries, said):
    told = f"{n_tokens} tokens are few for codebooks of {said}" if said else ""
    assert too_few(n_tokens, wanted, n_entries, "F", "--samples") == told
