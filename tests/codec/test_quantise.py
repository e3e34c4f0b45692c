"""Codebooks under training against the engine's search, plain NumPy and the definitions."""

import numpy as np
import pytest
import torch
from mpi4py import MPI

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.device.backend import get_backend
from astra_mpi.train.averages import Averages
from astra_mpi.train.codes.codebooks import Codebooks
from astra_mpi.train.codes.quantiser import Quantiser
from astra_mpi.train.codes.sender import Sender
from astra_mpi.train.cuts import draw_cut, make_view
from astra_mpi.train.noise import Noise
from helpers.fakes import random_basis

KERNELS = get_backend("reference", MPI.COMM_SELF).kernels


def book(kind="residual", n_codes=3, size=9, width=10, basis=False, seed=0):
    rng = np.random.default_rng(seed)
    entry_width = -(-width // n_codes) if kind == "grouped" else width
    entries = rng.normal(size=(n_codes, size, entry_width)).astype(np.float32)
    return Codebook(kind, entries, width, random_basis(rng, width, 6) if basis else None)


def rows(n=50, width=10, seed=1):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def codebooks(made, learns=False):
    config = CodecConfig(kind=made.kind, stages=made.n_codes, groups=made.n_codes, codebook_size=made.size)
    return Codebooks(Codec(config, (BlockCodec((made,)),)), learns)


@pytest.mark.parametrize(("kind", "basis"), [("residual", False), ("residual", True), ("grouped", False)])
def test_codes_and_entries_are_the_engines(kind, basis):
    made, x = book(kind, basis=basis), rows()
    use = Quantiser(made, False).encode(torch.from_numpy(x))
    want = made.encode(x, KERNELS)
    assert np.array_equal(use.codes.numpy(), want)
    np.testing.assert_allclose(x - use.rest.numpy(), made.decode(want, KERNELS), atol=1e-6)


def test_lowest_index_on_a_tie():
    entries = np.repeat(rows(1, 10)[None], 9, axis=1)
    use = Quantiser(Codebook("residual", entries, 10), False).encode(torch.from_numpy(rows()))
    assert (use.codes == 0).all()


@pytest.mark.parametrize("learns", [False, True])
def test_gradient_passes_straight_through(learns):
    """d seen / d x is the identity; the entries' gradient is the sum over the rows that use them."""
    made = book()
    x = torch.from_numpy(rows(12)).reshape(3, 4, 10).requires_grad_()
    weight = torch.from_numpy(rows(12, seed=5)).reshape(3, 4, 10)
    books = codebooks(made, learns)
    sender = Sender(books, None)
    (seen,) = sender(0, (x,))
    (seen * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    want = made.decode(made.encode(x.detach().flatten(0, 1).numpy(), KERNELS), KERNELS)
    np.testing.assert_allclose(seen.detach().flatten(0, 1).numpy(), want, atol=1e-6)
    entries = books.all[0].entries
    if not learns:
        assert entries.grad is None
        return
    expected = np.zeros(entries.shape, np.float32)
    codes, flat = sender.uses[0].codes.numpy(), weight.flatten(0, 1).numpy()
    for c in range(codes.shape[1]):
        np.add.at(expected[c], codes[:, c], flat)
    np.testing.assert_allclose(entries.grad.numpy(), expected, atol=1e-5)


def test_commitment_is_the_squared_error_of_real_tokens():
    x = torch.from_numpy(rows(12)).reshape(3, 4, 10).requires_grad_()
    real = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    sender = Sender(codebooks(book()), real)
    (seen,) = sender(0, (x,))
    want = (x.detach()[real] - seen.detach()[real]).square().sum()
    torch.testing.assert_close(sender.commitment.detach(), want)
    sender.commitment.backward()
    assert (x.grad[~real] == 0).all() and (seen[~real] == 0).all()


def test_moving_averages_are_the_formulas():
    """Entries after two updates against the definition in NumPy: N = d N + (1 - d) n, e = sums / N."""
    made, decay = book("grouped", n_codes=2, size=4), 0.9
    books = codebooks(made)
    averages = Averages(books, MPI.COMM_SELF, decay, 0.0, False)
    entries = made.entries.astype(np.float64)
    counts = sums = None
    for step in range(2):
        x = rows(40, seed=step + 7)
        sender = Sender(books, None)
        sender(0, (torch.from_numpy(x)[None],))
        codes, parts = sender.uses[0].codes.numpy(), x.reshape(40, 2, 5)
        if counts is None:
            counts = np.full((2, 4), 10.0)
            sums = entries * counts[..., None]
        for c in range(2):
            for k in range(4):
                counts[c, k] = decay * counts[c, k] + (1 - decay) * (codes[:, c] == k).sum()
                sums[c, k] = decay * sums[c, k] + (1 - decay) * parts[codes[:, c] == k, c].sum(axis=0)
        entries = sums / counts[..., None]
        averages.update(sender.uses, 0, step)
        np.testing.assert_allclose(books.all[0].entries.numpy(), entries, rtol=1e-4, atol=1e-5)


def test_unused_entries_begin_anew_in_the_batch():
    made = book(n_codes=1, size=5)
    made.entries[0, 3] = 100.0  # far from everything
    books = codebooks(Codebook("residual", made.entries, 10))
    averages, x = Averages(books, MPI.COMM_SELF, 0.5, 0.02, False), torch.from_numpy(rows())
    used = set()
    for step in range(12):
        sender = Sender(books, None)
        sender(0, (x[None],))
        used |= set(sender.uses[0].codes[:, 0].tolist())
        dead = averages.update(sender.uses, 0, step)
        if dead:
            break
    assert {k for _, _, k in dead} == set(range(5)) - used and 3 not in used
    (quantiser,) = books.all
    assert (quantiser.entries[0, 3] == x).all(dim=1).any()
    torch.testing.assert_close(quantiser.sums[0, 3], quantiser.entries[0, 3] * quantiser.counts[0, 3])
    assert quantiser.counts[0, 3] > 1


def test_noise_has_the_residuals_moments():
    rest = rows(4000, 6) @ rows(6, 6, seed=2) + np.arange(6, dtype=np.float32)
    noise, r = Noise(6), torch.from_numpy(rest)
    assert (noise.draw(np.array([1, 2]), [3, 4]) == 0).all()
    noise.update(r.mean(dim=0), r.T @ r / len(r), 0.99)
    drawn = noise.draw(np.arange(40), [500] * 40).numpy()
    np.testing.assert_allclose(drawn.mean(axis=0), rest.mean(axis=0), atol=0.15)
    wanted = np.cov(rest.T)
    np.testing.assert_allclose(np.cov(drawn.T), wanted, atol=0.05 * np.abs(wanted).max())


def test_noise_belongs_to_the_sequence():
    noise, r = Noise(6), torch.from_numpy(rows(100, 6))
    noise.update(r.mean(dim=0), r.T @ r / len(r), 0.99)
    whole = noise.draw(np.array([5, 6, 7]), [3, 2, 4])
    torch.testing.assert_close(whole[3:], noise.draw(np.array([6, 7]), [2, 4]))


@pytest.mark.parametrize("causal", [False, True])
def test_random_cuts_are_contiguous_and_cover_all(causal):
    keep = np.arange(9) < np.array([9, 5, 1])[:, None]
    sizes = set()
    for step in range(30):
        size, slices = draw_cut((2, 3, 8), True, 1, step)
        sizes.add(size)
        view = make_view(keep, 0, size, slices, causal=causal, sends=True)
        for rank, kept in zip(view.rank.numpy(), keep, strict=True):
            assert (rank[~kept] == -1).all() and (np.diff(rank[kept]) >= 0).all()
            assert rank[kept].min() >= 0 and rank[kept].max() < size
        for s, n in enumerate((9, 5, 1)):
            seen = view.visible(0)[s, 0, :n].sum(dim=1).numpy()
            assert (seen == (np.arange(1, n + 1) if causal else n)).all()  # every token is seen once, near or far
    assert sizes == {2, 3, 8}


def test_missing_codes_are_not_seen():
    """Of two sequences, rank 0 misses what rank 2 sent of the first one in block 1, and nothing else."""
    missing = np.zeros((2, 2, 3, 3), bool)
    missing[1, 0, 0, 2] = True
    keep = np.ones((2, 7), bool)
    view = make_view(keep, 1, 3, None, causal=False, sends=True, missing=missing)
    whole = make_view(keep, 1, 3, None, causal=False, sends=True).visible(0)[0, 0]
    assert (view.visible(0)[:, 0] == whole).all() and (view.visible(1)[1, 0] == whole).all()
    lost = whole & ~view.visible(1)[0, 0]
    rows, columns = lost.nonzero(as_tuple=True)
    assert set(rows.tolist()) == set((view.rank[0] == 0).nonzero()[:, 0].tolist())
    assert set(columns.tolist()) == {whole.shape[1] - 2, whole.shape[1] - 1}  # both tokens of rank 2, as sent


def test_nothing_begins_anew_at_the_end():
    books, x = codebooks(book(n_codes=1, size=5)), torch.from_numpy(rows())
    averages = Averages(books, MPI.COMM_SELF, 0.5, 1.0, False)  # whatever is used less than the mean would be revived
    for late, revived in ((True, False), (False, True)):
        sender = Sender(books, None)
        sender(0, (x[None],))
        assert bool(averages.update(sender.uses, 0, 0, late=late)) == revived
