"""Sampling: what is drawn from against transformers' warpers, how often against the chi-square test."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_mpi.decode.sampling import Sampler, greedy, uniform
from astra_mpi.errors import InputError

LOGITS = np.random.default_rng(0).normal(0, 2, (3, 17)).astype(np.float32)


def theirs(logits, temperature, top_k, top_p):
    """Temperature, top-k, top-p, as `generate` of transformers applies them."""
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.tensor(logits, dtype=torch.float64)
    warpers = [TemperatureLogitsWarper(float(temperature))]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p and top_p < 1 else []
    for warper in warpers:
        scores = warper(None, scores)
    return torch.softmax(scores, dim=-1).numpy()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(1, 40),
    temperature=st.sampled_from([0.3, 0.8, 1, 1.7]),
    top_k=st.none() | st.integers(1, 45),
    top_p=st.none() | st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.999, 1.0]),
)
def test_distribution_is_that_of_transformers(seed, vocab, temperature, top_k, top_p):
    logits = np.random.default_rng(seed).normal(0, 3, (2, vocab)).astype(np.float32)
    ours = Sampler(temperature, top_k, top_p).probabilities(logits)
    np.testing.assert_allclose(ours, theirs(logits, temperature, top_k, top_p), atol=1e-12)


def test_tokens_as_likely_as_the_last_kept_one_stay():
    """As with transformers, top_k = 2 keeps three where two tie for the second place."""
    logits = np.array([[0.0, 2.0, 1.0, 1.0, -1.0]], np.float32)
    ours = Sampler(1.0, top_k=2).probabilities(logits)
    assert (ours > 0).tolist() == [[False, True, True, True, False]]
    np.testing.assert_allclose(ours, theirs(logits, 1.0, 2, None), atol=1e-12)


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (6, None), (None, 0.8), (9, 0.9)])
def test_frequencies(top_k, top_p):
    """4000 draws at one step, of as many sequences: chi-square, at a fixed seed."""
    sampler = Sampler(1.3, top_k, top_p, seed=7)
    n = 4000
    drawn = sampler(np.repeat(LOGITS[:1], n, axis=0), np.arange(n), 0)
    expected = n * theirs(LOGITS[:1], 1.3, top_k, top_p)[0]
    counts = np.bincount(drawn, minlength=17)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    assert scipy.stats.chisquare(counts[kept], expected[kept]).pvalue > 0.01


def test_draws_are_uniform_over_sequences_steps_and_seeds():
    axes = [[uniform(3, i, 5) for i in range(1000)], [uniform(3, 5, i) for i in range(1000)]]
    axes += [[uniform(i, 3, 5) for i in range(1000)]]
    for draws in axes:
        assert scipy.stats.kstest(draws, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(axes)[np.triu_indices(3, 1)]).max() < 0.1
    assert len({x for draws in axes for x in draws}) > 2990
    assert uniform(-1, 0, 0) == uniform(2**64 - 1, 0, 0)  # negative seeds wrap


def test_draw_depends_on_seed_sequence_and_step_alone():
    """Neither on the other sequences of the batch nor on where the batch begins."""
    whole = Sampler(2.0, seed=1)(np.repeat(LOGITS, 40, axis=0), np.arange(120), 4)
    part = Sampler(2.0, seed=1, numbers=tuple(range(60, 120)))(np.repeat(LOGITS, 40, axis=0)[60:], np.arange(60), 4)
    np.testing.assert_array_equal(part, whole[60:])
    shuffled = np.random.default_rng(0).permutation(120)
    again = Sampler(2.0, seed=1)(np.repeat(LOGITS, 40, axis=0)[shuffled], shuffled, 4)
    np.testing.assert_array_equal(again, whole[shuffled])
    others = [Sampler(2.0, seed=2), Sampler(2.0, seed=1)]
    assert (others[0](np.repeat(LOGITS, 40, axis=0), np.arange(120), 4) != whole).any()
    assert (others[1](np.repeat(LOGITS, 40, axis=0), np.arange(120), 5) != whole).any()


def test_greedy_and_no_sequences():
    tied = np.array([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]], np.float32)
    assert greedy(tied, np.arange(2), 0).tolist() == Sampler()(tied, np.arange(2), 0).tolist() == [1, 0]
    assert Sampler(1e-3)(tied[1:], np.arange(1), 0).tolist() == [0]
    nobody = Sampler(0.7, 3, 0.9)(np.empty((0, 5), np.float32), np.arange(0), 0)
    assert nobody.shape == (0,) and nobody.dtype == np.int32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(temperature=-1), "temperature = -1"),
        (dict(temperature=float("nan")), "temperature = nan"),
        (dict(temperature=float("inf")), "temperature = inf"),
        (dict(temperature=1, top_k=0), "top_k = 0"),
        (dict(temperature=1, top_p=0.0), r"top_p = 0\.0: above 0"),
        (dict(temperature=1, top_p=1.5), r"top_p = 1\.5: above 0"),
        (dict(top_k=5), "need a temperature above 0"),
    ],
)
def test_what_cannot_be_sampled(options, said):
    with pytest.raises(InputError, match=said):
        Sampler(**options)
