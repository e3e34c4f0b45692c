"""Codes that are lost or late: left out or replaced exactly as the oracle does it, and gone by the next block."""

import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.network.missing import Missing
from astra_mpi.oracle.verify import verify
from astra_mpi.wire.exchange import Exchange
from astra_mpi.wire.laps import Laps
from helpers.fakes import bert_config, model_file, vit_config
from helpers.turns import by_turns

CODECS = {
    "residual": CodecConfig(stages=3, codebook_size=16),
    "grouped": CodecConfig(kind="grouped", groups=5, codebook_size=10),
    "one-code": CodecConfig(stages=1, codebook_size=9),
    "normed": CodecConfig(site="normed", stages=2, codebook_size=16),
    "kv": CodecConfig(site="kv", kind="grouped", groups=2, codebook_size=16),
}


def model_over(comm, config, codec=None, **options):
    return Model(
        model_file(config, codec),
        comm,
        get_backend("numpy", comm),
        conditions=parse_conditions(comm.size, **options),
    )


@pytest.mark.mpi
@by_turns(("family", "codec", "missing"), ["vit", "bert"], CODECS, ["drop", "mean"])
def test_answers_equal_the_oracle_with_gaps(comm, family, codec, missing):
    """Counted keys, class tokens and ragged batches included."""
    config, n_tokens = (vit_config(), None) if family == "vit" else (bert_config(), 17)
    model = model_over(comm, config, CODECS[codec], network="real,loss=40%", missing=missing, seed=3)
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    for check in verify(model, inputs, mask, ["astra:codes"]):
        assert check.passed, check
    comm.Barrier()
    found = model.report["missing"]
    if comm.size == 1:
        assert found is None
    else:
        assert found["messages"] == config.n_layers * comm.size * (comm.size - 1)
        assert found["treatment"] == missing and found["late"] == 0
        assert 0 < found["lost"] < found["messages"] or comm.size == 2


@pytest.mark.mpi
@pytest.mark.parametrize("missing", ["drop", "mean"])
@pytest.mark.parametrize("codec", ["residual", "one-code"])
def test_nothing_from_afar(comm, codec, missing):
    """All messages lost: dropped, a rank is alone with its slice, and short of that with keys of the mean."""
    config = vit_config()
    model = model_over(comm, config, CODECS[codec], network="real,loss=100%", missing=missing)
    inputs, mask = random_batch(config, 2, seed=1)
    for check in verify(model, inputs, mask, ["astra:codes"]):
        assert check.passed, check
    comm.Barrier()
    if comm.size > 1:
        assert model.report["missing"]["lost"] == model.report["missing"]["messages"]
        assert model.report["distinct_keys"] == (0.0 if missing == "drop" else 1.0)


@pytest.mark.mpi
def test_losses_depend_on_seed_and_batch_alone(comm):
    config = vit_config()
    first, second = (random_batch(config, 1, seed=s)[0] for s in (1, 2))

    def answers(seed, order):
        model = model_over(comm, config, network="real,loss=30%", seed=seed)
        model.use("astra", remote="table")
        return [model(inputs) for inputs in order]

    a, b = answers(0, [first, second])
    c, d = answers(0, [second, first])
    np.testing.assert_array_equal(a, d)
    np.testing.assert_array_equal(b, c)
    if comm.size > 2:
        assert any(not np.array_equal(answers(seed, [first])[0], a) for seed in range(1, 6))


def test_loss_is_drawn_per_message():
    missing = Missing(seed=5)
    missing.reset(7, 0.1, 2, 1000)
    lost = np.array([missing.lost(block) for block in range(20)])
    assert not lost[:, 2].any()
    assert abs(lost.mean() - 0.1) < 0.01
    assert not np.array_equal(lost[0], lost[1])


def test_a_rank_goes_on_at_the_limit_only_when_it_misses_something():
    missing = Missing(deadline_s=1.0)
    missing.reset(0, 0.0, 0, 3)
    arrivals = np.array([-np.inf, 1.5, 2.5])
    missed, ready_s = missing.judge(0, arrivals, missing.limit(1.0))
    assert (missed.tolist(), ready_s) == ([False, False, True], 2.0)
    missed, ready_s = missing.judge(1, arrivals, missing.limit(2.0))
    assert (missed.tolist(), ready_s) == ([False, False, False], 2.5)
    assert missing.counted() == [4, 0, 1]


@pytest.mark.mpi
@pytest.mark.parametrize("network", ["real", "1Gbps"])
def test_a_late_rank_is_not_waited_for(comm, network):
    """The last rank sends only when everybody else has gone on without it, and nobody gets that later."""
    conditions = parse_conditions(comm.size, network=network, deadline="20ms")
    exchange = Exchange(comm, Laps(conditions.make_clock(comm)), conditions.missing)
    exchange.connect(conditions.network)
    last = comm.size - 1
    for _ in range(2):
        exchange.reset()
        for number in range(3):
            late = number == 1
            if comm.rank == last and late:
                for r in range(last):
                    comm.Recv(np.empty(1), r)
            pending = exchange.start(np.full(5, 10 * comm.rank + number, np.uint8), [5] * comm.size, may_miss=True)
            parts = pending.wait()
            if comm.rank != last and late:
                assert pending.missing[last]
                comm.Send(np.zeros(1), last)
            for r in np.flatnonzero(~pending.missing):
                assert parts[r].tolist() == [10 * r + number] * 5
        exchange.sum(np.zeros((1, 1), np.float32), False)
        exchange.settle()
    assert comm.rank == last or exchange.missing.n_late >= 1


@pytest.mark.mpi
def test_a_deadline_on_the_virtual_clock(comm):
    """Codes that take longer than the deadline: every rank goes on without them, at the deadline."""
    config = bert_config()
    inputs, _ = random_batch(config, 1, 16, seed=0)
    options = dict(network="1Mbps,rtt=200ms", clock="virtual")
    reports = {}
    for deadline in ("20ms", "10s", None):
        model = model_over(comm, config, deadline=deadline, **options)
        model.use("astra")
        model(inputs)
        reports[deadline] = model.report
    if comm.size == 1:
        return
    short, long = reports["20ms"], reports["10s"]
    assert short["missing"]["late"] == short["missing"]["messages"]
    assert long["missing"]["late"] == 0 and reports[None]["missing"] is None
    saved_s = long["latency_s"]["total"] - short["latency_s"]["total"]
    assert saved_s > config.n_layers * (0.1 - 0.02) * 0.8


@pytest.mark.mpi
def test_exact_strategies_lose_nothing(comm):
    config = vit_config()
    model = model_over(comm, config, network="real,loss=50%", deadline="0")
    plain = model_over(comm, config)
    inputs, _ = random_batch(config, 1, seed=0)
    for each in (model, plain):
        each.use("sp")
    np.testing.assert_array_equal(model(inputs), plain(inputs))
    assert model.report["missing"] is None


@pytest.mark.mpi
def test_one_rank_failing_under_a_deadline_fails_all_alike(comm):
    config = vit_config()
    model = model_over(comm, config, deadline="5ms")
    inputs, _ = random_batch(config, 1, seed=0)
    model.use("astra")
    model(inputs)
    send, output = model.strategy.send, model.blocks[0].output
    for broken in ("send", "output"):  # before its first exchange, and between two
        if comm.rank == 0:
            setattr(model.strategy if broken == "send" else model.blocks[0], broken, lambda *_: 1 / 0)
        with pytest.raises(Exception, match="ZeroDivisionError"):
            if comm.size == 1 and broken == "send":
                raise ZeroDivisionError("ZeroDivisionError: nothing is sent on one rank")
            model(inputs)
        model.strategy.send, model.blocks[0].output = send, output
    assert np.isfinite(model(inputs)).all()
