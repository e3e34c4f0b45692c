"""The ranks as a grid: replicas that share a batch's sequences out, called as one model."""

import json
from pathlib import Path

import numpy as np
import pytest

import astra_mpi
from astra_mpi.cli import _parse
from astra_mpi.commands.model_options import load_model
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.errors import AstraError, InputError
from astra_mpi.files.modelfile import write_model
from astra_mpi.measure.bench import trace
from astra_mpi.oracle.verify import verify
from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.ranks.grid import Grid, make_groups, parse_grid
from astra_mpi.replicas.report import of_all, of_one
from helpers.fakes import bert_config, gpt2_config, model_file

mpi = pytest.mark.mpi


def test_places_and_what_is_no_grid():
    grid = parse_grid("2x1x4", 8)
    assert str(grid) == "2x1x4" and grid.size == 8 and not grid.whole
    assert [grid.place(r) for r in (0, 3, 4, 7)] == [(0, 0, 0), (0, 0, 3), (1, 0, 0), (1, 0, 3)]
    assert Grid(2, 3, 2).place(9) == (1, 1, 1) and list(Grid(2, 3, 2).ranks_of(1)) == list(range(6, 12))
    assert parse_grid(None, 5) == Grid(1, 1, 5) and parse_grid(None, 5).whole
    for text, message in (
        ("2x2", "not of the form"),
        ("0x1x8", "not of the form"),
        ("3x1x2", "6 ranks, and here are 8"),
    ):
        with pytest.raises(InputError, match=message):
            parse_grid(text, 8)


def report(total, **changes):
    latency = {"total": total, "compute": total, "exchange_wait": 0.0, "phases": {}, "compute_by_rank": [total, total]}
    counts = dict(contributed_bytes=[1, 2], formula_bytes=[1, 2], port_bytes=[2, 1], paper_bytes=3, other_bytes=4)
    lost = {"treatment": "drop", "messages": 2, "lost": 1, "late": 0}
    return dict(latency_s=latency, tokens=[5], distinct_keys=None, missing=lost, **counts) | changes


def test_reports_of_replicas_become_one():
    held, grid = {"weight_bytes": [7] * 6, "speed": [1.0] * 6}, Grid(3, 1, 2)
    one = of_one(report(1.0), grid, 1, held)
    assert one["contributed_bytes"] == [0, 0, 1, 2, 0, 0] and one["port_bytes"] == [0, 0, 2, 1, 0, 0]
    assert one["latency_s"]["compute_by_rank"] == [0, 0, 1.0, 1.0, 0, 0] and one["weight_bytes"] == [7] * 6
    assert (one["ranks"], one["grid"], one["replica"]) == (6, "3x1x2", 1)
    both = of_all([report(1.0), None, report(2.0, tokens=[3, 4], distinct_keys=6.0)], grid, held)
    assert both["contributed_bytes"] == [1, 2, 0, 0, 1, 2] and both["tokens"] == [5, 3, 4]
    assert both["latency_s"]["total"] == 2.0 and both["latency_s"]["compute_by_rank"] == [1.0, 1.0, 0, 0, 2.0, 2.0]
    assert (both["paper_bytes"], both["other_bytes"], both["distinct_keys"]) == (6, 8, 6.0)
    assert both["missing"]["messages"] == 4 and both["ranks"] == 6
    assert of_all([None, None], Grid(2, 1, 1), held) == {}


@mpi
def test_communicators_of_a_grid(comm):
    for replicas in {1, comm.size} | ({comm.size // 2} if comm.size % 2 == 0 else set()):
        grid = Grid(replicas, 1, comm.size // replicas)
        groups = make_groups(comm, grid)
        assert make_groups(comm, grid).tokens == groups.tokens  # not made again
        replica, _, token = groups.place
        assert (groups.tokens.size, groups.tokens.rank) == (grid.tokens, token)
        assert (groups.across.size, groups.across.rank) == (replicas, replica)
        assert groups.replica.size == grid.stages * grid.tokens


@pytest.fixture
def folder(comm, tmp_path):
    """Rank 0's temporary folder, with an encoder and a decoder."""
    shared = Path(broadcast_text(comm, str(tmp_path)))
    if comm.rank == 0:
        for config in (bert_config(), gpt2_config()):
            write_model(shared / f"{config.family}.h5", model_file(config))
    comm.Barrier()
    return shared


@mpi
@pytest.mark.parametrize("n_sequences", [1, 3, 7])
def test_replicas_answer_as_one_rank_does_to_the_bit(comm, folder, n_sequences):
    """Each replica of one rank; fewer sequences than replicas too. All ranks get all answers."""
    inputs, mask = random_batch(bert_config(), n_sequences, 11, ragged=True)
    model = astra_mpi.load(str(folder / "bert.h5"), comm=comm, strategy="astra", grid=f"{comm.size}x1x1")
    answer, hidden = model(inputs, mask, gather=True)
    alone = astra_mpi.load(str(folder / "bert.h5"), comm=comm.Split(comm.rank), strategy="single")
    shares = np.array_split(np.arange(n_sequences), comm.size)
    want = [alone(inputs[s], mask[s], gather=True) for s in shares if len(s)]
    assert answer.tobytes() == np.concatenate([part for part, _ in want]).tobytes()
    assert (hidden is None) == (comm.rank > 0)
    if hidden is not None:
        rows = hidden.shape[1]
        padded = [np.pad(part, ((0, 0), (0, rows - part.shape[1]), (0, 0))) for _, part in want]
        np.testing.assert_array_equal(hidden, np.concatenate(padded))
    if comm.size > 1:
        assert model.report["ranks"] == comm.size and model.report["grid"] == f"{comm.size}x1x1"
        assert model.report["tokens"] == mask.sum(axis=1).tolist()
        assert model.report["contributed_bytes"] == model.report["formula_bytes"] == [0] * comm.size


@mpi
def test_a_trace_where_some_replicas_have_no_sequence(comm, folder):
    grid = f"{comm.size}x1x1"
    model = astra_mpi.load(str(folder / "bert.h5"), comm=comm, strategy="single", grid=grid)
    text = trace(model, *random_batch(model.config, 1, 8))
    if comm.rank == 0:
        spans = [event for event in json.loads(text)["traceEvents"] if event["ph"] == "X"]
        assert {span["pid"] for span in spans} == {0}


@mpi
def test_strategies_work_inside_their_group(comm, folder):
    """Two replicas whose ranks share tokens: as much is sent, and the same comes out, as on half the ranks."""
    if comm.size % 2:
        pytest.skip("an even number of ranks")
    half = comm.size // 2
    inputs, mask = random_batch(gpt2_config(), 5, 13, ragged=True)
    model = astra_mpi.load(str(folder / "gpt2.h5"), comm=comm, strategy="astra", grid=f"2x1x{half}")
    own = comm.Split(comm.rank // half, comm.rank)
    alone = astra_mpi.load(
        str(folder / "gpt2.h5"), comm=own, strategy="astra", remote=model.report.get("remote", "gemm")
    )
    model.use("astra", remote="gemm")
    answer = model(inputs, mask)
    parts, sent = [], []
    for part in (slice(0, 3), slice(3, 5)):
        parts.append(alone(inputs[part], mask[part]))
        sent += alone.report["contributed_bytes"]
    assert answer.tobytes() == np.concatenate(parts).tobytes()
    assert model.report["contributed_bytes"] == model.report["formula_bytes"] == sent
    scores = model.nll(inputs, mask, np.zeros(5, np.int64))
    new = model.generate(inputs, mask, max_new_tokens=4)
    np.testing.assert_array_equal(
        scores,
        np.concatenate([alone.nll(inputs[p], mask[p], np.zeros(5, np.int64)) for p in (slice(0, 3), slice(3, 5))]),
    )
    np.testing.assert_array_equal(
        new, np.concatenate([alone.generate(inputs[p], mask[p], max_new_tokens=4) for p in (slice(0, 3), slice(3, 5))])
    )
    assert len(model.report["generation"]["cache_bytes"]) == comm.size
    with pytest.raises(InputError, match="give a grid with one replica"):
        model.generate(inputs, mask, max_new_tokens=1, on_tokens=print)


@mpi
def test_a_failure_of_one_replica_is_every_rank_s(comm, folder):
    model = astra_mpi.load(str(folder / "bert.h5"), comm=comm, strategy="single", grid=f"{comm.size}x1x1")
    inputs, mask = random_batch(bert_config(), 2 * comm.size, 5)
    with pytest.raises(InputError) as caught:
        model(inputs + 50 * (np.arange(len(inputs)) == len(inputs) - 1)[:, None], mask)
    assert caught.value.collective
    assert model(inputs, mask).shape == (2 * comm.size, 24)
    if comm.size == 4:  # a rank is named by its number in the whole job
        model = astra_mpi.load(str(folder / "bert.h5"), comm=comm, strategy="sp", grid="2x1x2")
        if comm.rank == 3:
            model.strategy.steps = lambda i, x: 1 / 0
        with pytest.raises(AstraError, match=r"^rank 3: ZeroDivisionError"):
            model(inputs, mask)
    if comm.size > 1:
        with pytest.raises(InputError, match="inputs differ between ranks"):
            model(inputs + (comm.rank == 1), mask)


@mpi
@pytest.mark.parametrize("n_sequences", [1, 3])
def test_verify_over_replicas(comm, folder, n_sequences, capsys):
    """Each replica against its own oracle; a wrong one is found wherever it is."""
    pairs = comm.size % 2 == 0
    grid = Grid(comm.size // 2, 1, 2) if pairs else Grid(comm.size, 1, 1)
    args = ["verify", str(folder / "gpt2.h5"), "--strategies", "sp,astra", "--grid", str(grid), "--tokens", "9"]
    args = _parse([*args, "--batch", str(n_sequences)])
    assert args.run(args, comm) == 0
    said = capsys.readouterr().out
    if comm.rank == 0:
        assert said.count("agrees") == 8 and f"grid {grid}" in said
    wrong = _parse(["verify", str(folder / "gpt2.h5"), "--strategies", "sp:kv:float32", "--grid", str(grid)])
    model = load_model(wrong, comm, "single")
    inputs, mask = random_batch(gpt2_config(), 2 * comm.size, 9, ragged=True)
    inner = getattr(model, "model", model)
    if comm.rank == comm.size - 1:
        output = inner.blocks[1].output
        inner.blocks[1].output = lambda x, attended: output(x, attended) * np.linspace(1, 2, 24, dtype=np.float32)
    checks = verify(model, inputs, mask, ["sp:kv:float32"])
    assert [check.passed for check in checks] == [False] * (comm.rank == 0)
