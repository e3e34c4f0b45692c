"""Slices in one process are what ranks compute; stages go where the answer changes most."""

import itertools

import numpy as np
import pytest

from astra_mpi.calibrate.allotting import as_counts, as_rows, followed, grouped, mean_stages, spent
from astra_mpi.calibrate.emulated import AsCodes, Change, Emulated
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.network.conditions import Conditions, parse_conditions
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file, vit_config

FAMILIES = {
    "vit": (vit_config(n_layers=3), None, CodecConfig(stages=2, codebook_size=9)),
    "bert-cls": (bert_config(pooling="cls", n_layers=3), 9, CodecConfig(site="normed", stages=(2, 0, 1))),
    "gpt2": (
        gpt2_config(n_layers=3),
        13,
        CodecConfig(site="normed", stages=2, codebook_size=9, predict="linear", sinks=2, inputs=2),
    ),
    "awaited": (
        llama_config(n_layers=4),
        13,
        CodecConfig(site="normed", stages=2, codebook_size=9, predict="linear", awaited=(2,)),
    ),
    "llama": (
        llama_config(n_layers=3),
        19,
        CodecConfig(site="kv", kind="scalar", vector_bits=20, codebook_size=16, sinks=1),
    ),
}


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("family", "late", "loss"),
    [(family, family == "awaited", 0.0) for family in FAMILIES]
    + [("gpt2", True, 0.0), ("gpt2", False, 0.4), ("gpt2", True, 0.4), ("awaited", True, 0.4)],
)
def test_slices_of_one_process_are_what_ranks_compute(comm, family, late, loss):
    config, n_tokens, codes = FAMILIES[family]
    file = model_file(config, codes)
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    conditions = parse_conditions(comm.size, network=f"real,loss={loss:.0%}", seed=4) if loss else Conditions()
    model = Model(file, comm, get_backend("numpy", comm), conditions=conditions)
    model.use("astra:late" if late else "astra")
    answer = model(inputs, mask)
    if comm.rank:
        return
    from mpi4py import MPI

    alone = Model(file, MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF))
    emulated = Emulated(alone, inputs, mask, codes.site, comm.size, codes.sinks)
    lost = emulated.lost(loss, 4) if loss else None
    rows = emulated.passed(AsCodes(file.codec.blocks, codes, emulated, late=late, lost=lost), emulated.rows)
    shares = np.split(rows, np.cumsum([layout.row_offsets[-1] for layout in emulated.layouts])[:-1])
    pooled = np.sum([alone.family.pool(*pair) for pair in zip(shares, emulated.layouts, strict=True)], axis=0)
    mine = alone.family.head(pooled, emulated.lengths)
    np.testing.assert_allclose(mine, answer, atol=2e-5 * np.abs(answer).max())
    exact = emulated.passed(lambda i, x: x, emulated.rows)
    change = Change(emulated, exact)
    assert change(exact) == pytest.approx(0, abs=1e-6)
    assert (change(rows) > 1e-6) == (comm.size > 1)


def test_stages_are_spent_as_the_best_of_all_ways():
    rng = np.random.default_rng(0)
    for _ in range(20):
        falls = -np.sort(-rng.exponential(size=(4, 3)), axis=1)  # every stage gains less than the one before it
        changes = 10 - np.concatenate([np.zeros((4, 1)), np.cumsum(falls, axis=1)], axis=1)
        for total in (0, 1, 5, 12, 20):
            stages = spent(changes, np.ones(4, np.int64), total)
            assert stages.sum() == min(total, 12)
            ways = (w for w in itertools.product(range(4), repeat=4) if sum(w) <= total)
            best = min(sum(changes[c, m] for c, m in enumerate(way)) for way in ways)
            assert changes[np.arange(4), stages].sum() == pytest.approx(best)


def test_a_stage_that_gains_nothing_alone_is_bought_with_the_next_and_none_for_nothing():
    once = np.ones(2, np.int64)
    assert spent(np.array([[5.0, 5.0, 1.0], [3.0, 2.0, 1.5]]), once, 2).tolist() == [2, 0]
    assert spent(np.array([[1.0, 1.0], [1.0, 2.0]]), once, 2).tolist() == [0, 0]


def test_a_stage_of_a_group_costs_one_in_each_of_its_blocks():
    changes, costs = np.array([[6.0, 0.0], [5.0, 0.0]]), np.array([3, 1])
    assert spent(changes, costs, 2).tolist() == [0, 1]
    assert spent(changes, costs, 4).tolist() == [1, 1]
    assert [len(group) for group in grouped(30, 1)] == [4, 4, 4, 4, 4, 3, 3, 3]
    assert [group.tolist() for group in grouped(3, 0)] == [[0], [1], [2]]


def test_changes_follow_the_squared_error():
    errors = np.array([1, 0.5, 0.25, 0.125])
    np.testing.assert_allclose(followed(3.0, errors, 1, 5), 8 * 0.5 ** np.arange(6), rtol=1e-6)
    falling = followed(-1.0, errors, 1, 5)  # noise: an answer that became better
    assert (np.diff(falling) < 0).all()
    assert falling[0] < 1e-9


def test_counts_are_stored_as_they_were():
    counts = ((1, 2), 0, (3, 0))
    config = CodecConfig(site="kv", stages=counts)
    assert as_counts(as_rows(counts, config)) == counts


@pytest.mark.parametrize(
    ("settings", "bits", "message"),
    [
        (dict(codebook_size=16), 0, "give 2 to 256"),
        (dict(codebook_size=16, site="normed", predict="linear"), 3, "give 4 to 256"),
        (dict(codebook_size=16, site="kv"), 513, "give 2 to 512"),
        (dict(codebook_size=1), 8, "use two or more"),
    ],
)
def test_bits_that_cannot_be_allotted(settings, bits, message):
    with pytest.raises(InputError, match=f"--bits {bits}: .*{message}"):
        mean_stages(CodecConfig(**settings), bits, 2)
