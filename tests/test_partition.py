"""The cut and the layout, without MPI."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_mpi.errors import InputError
from astra_mpi.layout import Layout
from astra_mpi.partition import TokenCost, cut, displs, even, finish_together, ranges, rotated, weighted

SIZES = st.integers(1, 9)
TOKENS = st.integers(0, 200)


@given(TOKENS, SIZES)
def test_even_covers_all_and_differs_by_one(n_tokens, size):
    counts = even(n_tokens, size)
    assert counts.sum() == n_tokens
    assert counts.max() - counts.min() <= 1
    assert (np.diff(counts) <= 0).all()


@given(TOKENS, st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(lambda w: sum(w) > 0))
def test_weighted_is_within_one_of_its_share(n_tokens, weights):
    counts = weighted(n_tokens, weights)
    share = n_tokens * np.array(weights) / sum(weights)
    assert counts.sum() == n_tokens
    assert (counts >= 0).all()
    assert (np.abs(counts - share) < 1 + 1e-6).all()


@given(TOKENS, SIZES)
def test_equal_weights_are_even(n_tokens, size):
    assert weighted(n_tokens, [2.5] * size).tolist() == even(n_tokens, size).tolist()


COSTS = st.builds(TokenCost, *[st.floats(0.01, 10)] * 2, *[st.floats(0, 10)] * 2, st.sampled_from([0, 0, 1, 8]))


def time_of(start, n, cost, last):
    """What a rank needs for tokens start .. start + n - 1, added up token by token."""
    own = sum(cost.own + cost.score * (i + 1) for i in range(start, start + n))
    sent = 0 if last else sum(i >= cost.sinks for i in range(start, start + n))
    replicas = min(start, cost.sinks)
    return own + cost.send * sent + cost.far * (start - replicas) + cost.own * replicas


@given(TOKENS, st.lists(st.floats(0.05, 1), min_size=1, max_size=9), COSTS)
def test_ranks_finish_together(n_tokens, speeds, cost):
    """No rank needs longer than the best cut allows, found here token by token, but for rounding to whole tokens."""
    counts = finish_together(n_tokens, speeds, cost)
    assert counts.sum() == n_tokens
    assert (counts >= 0).all()
    starts, last = displs(counts), len(speeds) - 1
    ranks = list(enumerate(zip(starts, counts, speeds, strict=False)))
    longest = max(time_of(a, n, cost, r == last) / speed for r, (a, n, speed) in ranks if n) if n_tokens else 0
    token = max((cost.own + cost.send + cost.far + cost.score * n_tokens) / speed for speed in speeds)
    for r, (a, n, speed) in ranks:
        behind = a + n < n_tokens  # a rank that could have taken one token more, and let the others finish earlier
        assert not behind or time_of(a, n, cost, r == last) / speed > longest - 2 * token - 1e-6


@given(TOKENS, SIZES)
def test_tokens_that_see_nothing_are_cut_evenly(n_tokens, size):
    counts = finish_together(n_tokens, [2.0] * size, TokenCost(own=1.0, score=0.0))
    assert np.abs(counts - n_tokens / size).max() <= 1


def test_a_triangle_is_shared_evenly():
    """Scores alone: boundaries at T sqrt(r / P)."""
    counts = finish_together(10000, [1.0] * 4, TokenCost(own=1e-9, score=1.0))
    assert np.abs(np.cumsum(counts) - 10000 * np.sqrt([0.25, 0.5, 0.75, 1])).max() <= 1


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [np.nan, 1.0], [np.inf, 1.0], []])
def test_weights_that_mean_nothing(weights):
    with pytest.raises(InputError, match="weights"):
        weighted(5, weights)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=8))
def test_ranges(parts):
    starts = np.array([start for start, _ in parts], dtype=np.int64)
    counts = np.array([n for _, n in parts], dtype=np.int64)
    assert ranges(starts, counts).tolist() == [start + i for start, n in parts for i in range(n)]


LENGTHS = st.lists(st.integers(0, 20), max_size=6).map(lambda lengths: np.array(lengths, dtype=np.int64))


@given(LENGTHS, SIZES, st.integers(0, 3), st.booleans())
def test_layouts_of_all_ranks_fit_together(lengths, size, n_class, causal):
    """Against the plain definition: a list of (sequence, token, rank), walked through in loops."""
    counts = cut(lengths, size)
    layouts = [Layout(counts, rank, n_class, causal, size) for rank in range(size)]
    owner = [np.repeat(np.arange(size), counts[s]) for s in range(len(lengths))]
    gathered = [(s, t) for r in range(size) for s in range(len(lengths)) for t in np.flatnonzero(owner[s] == r)]
    everything = [(s, t) for s, length in enumerate(lengths) for t in range(length)]
    for rank, layout in enumerate(layouts):
        assert [gathered[i] for i in layout.sequence_order] == everything
        rows = []
        for s in range(len(lengths)):
            rows += [(s, c) for c in range(n_class)] + [(s, n_class + t) for t in np.flatnonzero(owner[s] == rank)]
        assert list(zip(layout.row_sequence, layout.row_token, strict=True)) == rows
        far = [[(s, t) for t in range(n) if owner[s][t] != rank and not (causal and owner[s][t] > rank)]
               for s, n in enumerate(lengths)]  # fmt: skip
        assert [gathered[i] for i in layout.far_index] == [item for part in far for item in part]
        assert layout.far_offsets.tolist() == displs(np.array([len(part) for part in far], dtype=np.int64)).tolist()
        x = np.arange(len(rows) * 2, dtype=np.float32).reshape(len(rows), 2)
        content = [i for i, (_, t) in enumerate(rows) if t >= n_class]
        np.testing.assert_array_equal(layout.content(x), x[content])
        assert layout.class_rows.tolist() == [i for i, (_, t) in enumerate(rows) if t < n_class]
        for s in range(len(lengths)):
            mine = [i for i in content if rows[i][0] == s]
            np.testing.assert_allclose(layout.content_sums(x)[s], x[mine].sum(axis=0))


def test_class_shares_add_up_to_the_mean():
    counts = cut(np.array([3, 1]), 2)
    x = [np.full((int(counts[:, r].sum()) + 2, 1), float(r + 1), np.float32) for r in range(2)]
    shares = [Layout(counts, r, 1, False, 2).class_share(x[r]) for r in range(2)]
    np.testing.assert_allclose(sum(shares), [[1.5], [1.5]])


def test_each_class_token_has_its_own_mean():
    """Side by side: of rows 1, 2, 3 and 10, 20, 30 on two ranks that hold no content."""
    x = [np.array([[1.0], [2], [3]], np.float32) * 10**r for r in range(2)]
    layouts = [Layout(np.zeros((1, 2), np.int64), r, 3, False, 2) for r in range(2)]
    shares = [layout.class_share(rows) for layout, rows in zip(layouts, x, strict=True)]
    np.testing.assert_allclose(sum(shares), [[5.5, 11, 16.5]])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), SIZES, st.integers(0, 8), st.booleans(), st.data())
def test_every_token_is_own_or_replica_or_far(lengths, size, sinks, spread, data):
    """Of each rank and sequence: a token before its slice is a replica if it is among the first, else far; and what
    all ranks have of their own is every token once."""
    weights = data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size).filter(lambda w: sum(w) > 0))
    counts = cut(np.array(lengths), size, weights)
    places = rotated(len(lengths), size) if spread else None
    counts = counts if places is None else np.take_along_axis(counts, places, axis=1)
    layouts = [Layout(counts, r, causal=True, replicas=size, places=places, sinks=sinks) for r in range(size)]
    owned = []
    for r, layout in enumerate(layouts):
        gathered = layout.packed_content  # (N,) places in the batch
        rows = np.split(layout.packed_rows, layout.row_offsets[1:-1])
        far = np.split(gathered[layout.far_index], layout.far_offsets[1:-1])
        replicas = np.zeros(layout.row_offsets[-1], bool)
        replicas[layout.replica_rows] = True
        owned += layout.packed_rows[~replicas].tolist()
        assert layout.content(layout.packed_rows).tolist() == layout.packed_rows[~replicas].tolist()
        ends = displs(np.array(lengths))
        for s, (mine, away) in enumerate(zip(rows, far, strict=True)):
            start = int(layout.starts[s, r])
            copies = range(min(start, sinks)) if counts[s, r] else range(0)
            assert (mine - ends[s]).tolist() == [*copies, *range(start, start + counts[s, r])]
            assert (away - ends[s]).tolist() == list(range(min(sinks, start), start))
    assert sorted(owned) == list(range(sum(lengths)))
    assert sum(layouts[0].sent_counts) == sum(max(n - sinks, 0) for n in lengths)
