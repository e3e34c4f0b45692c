"""Look-up, and how many drafts are checked, on one rank; what drafts leave of the distribution of drawn tokens."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from astra_mpi.costs.decode import MOST_ROWS
from astra_mpi.decode.drafts import N_GRADES, Guess
from astra_mpi.decode.drafts.lookup import Lookup, Places
from astra_mpi.decode.drafts.pace import Pace, Rates
from astra_mpi.decode.drafts.source import check_tokens
from astra_mpi.decode.sampling import Sampler
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.kernels.cpu.token.tables import MAX_ROWS
from helpers.fakes import gpt2_config, model_file
from helpers.tokenizers import letter_tokenizer


def test_drafts_and_a_token_fill_a_compiled_call():
    assert MOST_ROWS == MAX_ROWS  # the cost model imports no kernels


def naive(ids):
    """Where the longest of four tokens last came before, and how long the match is, by looking everywhere."""
    for n in (4, 3, 2, 1):
        places = [i for i in range(n, len(ids)) if ids[i - n : i] == ids[len(ids) - n :]]
        if places:
            while n < N_GRADES and n < places[-1] and ids[places[-1] - 1 - n] == ids[-1 - n]:
                n += 1
            return places[-1], n
    return 0, 0


def test_places_are_the_latest_after_the_longest_match():
    rng = np.random.default_rng(0)
    for n_tokens in (2, 4, 30):
        ids = rng.integers(0, n_tokens, 120).tolist()
        places = Places(ids[:50])
        assert places.find() == naive(ids[:50])
        for i in range(50, 120):
            places.append(ids[i])
            assert places.find() == naive(ids[: i + 1])


def test_guesses_continue_and_repeat():
    guesses = Lookup().open(None, {4: np.array([1, 2, 3, 4, 5, 6, 9, 1, 2, 3])}, np.array([20]))
    assert guesses.guess([4], [3]) == [Guess([4, 5, 6], [2, 3, 4])]
    assert guesses.learn(4, [4, 7]) == [(2, True), (3, False)]
    assert guesses.guess([4], [3]) == [Guess([], [])]
    assert guesses.learn(4, [8, 7, 8]) == [(0, True)]
    assert guesses.guess([4], [5])[0].ids == [7, 8, 7, 8, 7]  # beyond what there is, the guess itself goes on


def pace_of(seconds):
    """After one pass of each number of rows."""
    pace = Pace()
    for rows, s in seconds.items():
        pace.took(rows, s, plain=rows == 1)
    return pace


def test_as_many_drafts_as_pay():
    """Against the best of all numbers of drafts, by their cost and gain."""
    sure = [0.8**j for j in range(1, 16)]
    for seconds in ({1: 1.0, 16: 1.1}, {1: 1.0, 4: 1.6, 8: 2.2, 16: 3.6}, {1: 1.0, 2: 2.0, 16: 16.0}):
        pace = pace_of(seconds)
        speeds = [(1 + sum(sure[:k])) / pace.seconds(1 + k) for k in range(16)]
        best = int(np.argmax(speeds))
        assert pace.worth([sure], 1, 15) == [best if speeds[best] > 1.02 else 0]
        assert pace.wanted(0.8, 1, 15) == (best if speeds[best] > 1.02 else 0)
    assert pace_of({1: 1.0, 16: 1.1}).worth([sure, sure[:2], [0.01]], 3, 13) == [
        0,
        0,
        0,
    ]  # of three rows nothing is known
    pace = pace_of({1: 1.0, 16: 1.1})
    pace.took(3, 1.0, plain=True)
    assert pace.worth([sure, sure[:2], [0.001]], 3, 6) == [4, 2, 0]


def test_nothing_is_drafted_that_does_not_pay():
    """Of guesses that turn out wrong, few are checked; passes without drafts are timed again now and then."""
    rng, rates, pace, checked = np.random.default_rng(0), Rates((0.5,) * N_GRADES), Pace(), 0
    for _ in range(400):
        chances = np.cumprod([rates.of(3)] * 5).tolist()
        (n,) = pace.worth([chances], 1, 15)
        checked += n
        pace.took(1 + n, 1 + 0.15 * n + 0.02 * rng.random(), plain=not n)
        rates.note(3, rng.random() < 0.02)
    assert 0 < 0.15 * checked < 0.01 * 400
    plain = 0
    for _ in range(400):
        (n,) = pace.worth([[0.99**j for j in range(1, 16)]], 1, 15)
        plain += not n
        pace.took(1 + n, 1 + 0.01 * n, plain=not n)
    assert 2 <= plain <= 8


def test_seconds_never_fall_with_rows():
    pace = pace_of({1: 3.0, 5: 1.0, 9: 2.0})  # the first one was slow for other reasons
    assert [pace.seconds(n) for n in (1, 5, 7, 9, 13)] == [1.0, 1.0, 1.5, 2.0, 2.5]


def test_same_tokens():
    file = dataclasses.replace(model_file(gpt2_config()), tokenizer=letter_tokenizer())
    check_tokens(file, file)
    other = dataclasses.replace(file, tokenizer=letter_tokenizer().replace('"a"', '"aa"'))
    with pytest.raises(InputError, match=r"other tokens than the model .* use one with the same tokenizer"):
        check_tokens(other, file)


def test_distribution(comm, monkeypatch):
    """Tokens drawn with drafts, all of which are checked, and by other seeds without: the same distribution."""
    monkeypatch.setattr(Pace, "worth", lambda self, chances, rows, most: [len(of_one) for of_one in chances])
    model = Model(model_file(gpt2_config(vocab_size=6, n_layers=1)), comm, get_backend("numpy", comm))
    model.use("single")
    ids, counts, drafts = np.tile([1, 2, 3, 1, 2, 3, 1], (5, 1)), np.zeros((2, 36), np.int64), np.zeros(2, np.int64)
    for seed in range(200):
        for way, draft in enumerate((None, "lookup")):
            sampler = Sampler(0.7, seed=2 * seed + way)
            new = model.generate(ids, max_new_tokens=3, sample=sampler, draft=draft)
            np.add.at(counts[way], 6 * new[:, 1] + new[:, 2], 1)
        found = model.report["generation"]["drafts"]
        drafts += found["accepted"], found["drafted"]
    assert 50 < drafts[0] < drafts[1] - 50
    often = counts.sum(axis=0) >= 20
    table = np.concatenate([counts[:, often], counts[:, ~often].sum(axis=1, keepdims=True)], axis=1)
    assert table.shape[1] > 10
    assert scipy.stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > 0.01
