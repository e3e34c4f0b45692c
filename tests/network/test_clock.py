"""Emulated networks and virtual clocks in real forward passes: who waits for what, and for how long."""

import json
import time

import numpy as np
import pytest

from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.network.clock import VirtualClock
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.wire.exchange import Exchange
from astra_mpi.wire.laps import Laps
from helpers.fakes import bert_config, model_file, vit_config


def busy(cpu_s):
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def exchange_over(comm, **options):
    conditions = parse_conditions(comm.size, **options)
    laps = Laps(conditions.make_clock(comm))
    exchange = Exchange(comm, laps, conditions.missing)
    exchange.connect(conditions.network)
    return exchange


def model_over(comm, config=None, **options):
    return Model(
        model_file(config or vit_config()),
        comm,
        get_backend("numpy", comm),
        conditions=parse_conditions(comm.size, **options),
    )


def test_virtual_time_is_cpu_time():
    clock = VirtualClock(speed=3.0)
    with clock.running():
        begin = clock.now()
        busy(0.02)
        time.sleep(0.1)
        assert 0.06 <= clock.now() - begin < 0.15
        clock.wait_until(10.0)
        assert 10.0 <= clock.now() < 10.1
        clock.wait_until(5.0)
        before = clock.now()
        with clock.aside():
            busy(0.02)
        assert clock.now() - before < 0.01 * clock.speed
    stopped = clock.now()
    busy(0.01)
    assert clock.now() == stopped


@pytest.mark.mpi
@pytest.mark.parametrize("clock", ["wall", "virtual"])
def test_an_exchange_ends_after_the_slowest_sender_and_its_transfer(comm, clock):
    """Rank r starts r * 30 ms late; every rank gets P - 1 payloads of 25 ms, and hides its own work behind them."""
    exchange = exchange_over(comm, network="1Mbps,rtt=20ms", clock=clock)
    counts = [3125] * comm.size
    exchange.reset()
    comm.Barrier()
    with exchange.clock.running():
        exchange.laps.start()
        begin = exchange.clock.now()
        if clock == "wall":
            time.sleep(0.03 * comm.rank)
        else:
            busy(0.03 * comm.rank)
        pending = exchange.start(np.full(3125, comm.rank, np.uint8), counts)
        busy(0.01)
        parts = pending.wait()
        took_s = exchange.clock.now() - begin
    assert [int(part[0]) for part in parts] == list(range(comm.size))
    if comm.size > 1:
        late_s = 0.03 * (comm.size - 1)
        # the last rank sends to the others one after another; itself it has waited for what came before
        least_s = late_s + 0.025 + 0.01 if comm.rank < comm.size - 1 else late_s + 0.01
        assert took_s >= least_s
        if clock == "virtual":  # the wall's goes on while others have the cores
            assert took_s < late_s + 0.025 * (comm.size - 1) + 0.01 + 0.05


@pytest.mark.mpi
def test_compute_hides_a_transfer(comm):
    """On a virtual clock exactly: an exchange that takes less than the work done meanwhile takes no time."""
    exchange = exchange_over(comm, network="100Mbps", clock="virtual")
    exchange.reset()
    with exchange.clock.running():
        exchange.laps.start()
        pending = exchange.start(np.zeros(1250, np.uint8), [1250] * comm.size)
        busy(0.03)  # 0.1 ms for each payload
        exchange.laps.mark("mlp")
        pending.wait()
    assert exchange.laps.seconds["mlp"] >= 0.03
    assert exchange.laps.seconds["exchange"] < 0.01


@pytest.mark.mpi
def test_virtual_latency_is_the_links(comm):
    """At 1 Mbps `sp` takes the time of its bytes, whatever computes it, and all ranks end alike."""
    config = bert_config()
    model = model_over(comm, config, network="1Mbps,rtt=10ms", clock="virtual")
    inputs, _ = random_batch(config, 1, 16, seed=0)
    model.use("sp")
    model(inputs)
    report, latency = model.report, model.report["latency_s"]
    if comm.size == 1:
        assert latency["exchange_wait"] < 1e-3
        return
    transfer_s = max(report["port_bytes"]) * 8e-6 + config.n_layers * 0.005
    shares = [(comm.size - 1, 1), (2 * (comm.size - 1) / comm.size, 2)]  # of the sum at the end, and hops
    transfer_s += min(config.d_model * 4 * 8e-6 * n + hops * 0.005 for n, hops in shares)
    assert transfer_s <= latency["total"] < transfer_s + latency["compute"] + 0.02
    assert latency["total"] == pytest.approx(latency["compute"] + latency["exchange_wait"])
    assert (report["network"], report["clock"], report["accounting"]) == ("1Mbps,rtt=10ms", "virtual", "port")


@pytest.mark.mpi
def test_speed_is_per_rank(comm):
    slow = model_over(comm, network="1Gbps", clock="virtual", speed=[50.0] + [1.0] * (comm.size - 1))
    fast = model_over(comm, network="1Gbps", clock="virtual")
    inputs, _ = random_batch(slow.config, 1, seed=0)
    times = []
    for model in (fast, slow):
        model.use("sp")
        for _ in range(3):
            model(inputs)
        times.append(model.report["latency_s"]["total"])
    assert times[1] > 5 * times[0]
    assert model.report["speed"] == [50.0] + [1.0] * (comm.size - 1)


@pytest.mark.mpi
@pytest.mark.parametrize("options", [{"network": "50Mbps,rtt=1ms"}, {"network": "50Mbps,shared", "clock": "virtual"}])
def test_answers_do_not_change(comm, options):
    model = model_over(comm, **options)
    plain = model_over(comm)
    inputs, _ = random_batch(model.config, 2, seed=1)
    for strategy in ("single", "sp", "astra"):
        for each in (model, plain):
            each.use(strategy, remote="table")
        np.testing.assert_array_equal(model(inputs), plain(inputs))
        for name in ("contributed_bytes", "port_bytes", "paper_bytes", "other_bytes"):
            assert model.report[name] == plain.report[name]


@pytest.mark.mpi
def test_three_byte_counts(comm):
    model = model_over(comm)
    inputs, _ = random_batch(model.config, 1, seed=1)
    model.use("sp")
    model(inputs)
    contributed = model.report["contributed_bytes"]
    assert model.report["port_bytes"] == [sum(contributed) - own for own in contributed]
    assert model.report["paper_bytes"] == round(sum(contributed) / comm.size)
    assert model.report["accounting"] is None


@pytest.mark.mpi
@pytest.mark.parametrize("clock", ["wall", "virtual"])
def test_a_failing_rank_ends_all_alike(comm, clock):
    model = model_over(comm, network="1Gbps", clock=clock)
    inputs, _ = random_batch(model.config, 1, seed=2)
    model.use("astra")
    want = model(inputs)
    output = model.blocks[1].output
    if comm.rank == comm.size - 1:
        model.blocks[1].output = lambda *_: 1 / 0
    with pytest.raises(Exception, match="ZeroDivisionError"):
        model(inputs)
    model.blocks[1].output = output
    np.testing.assert_array_equal(model(inputs), want)


@pytest.mark.mpi
@pytest.mark.parametrize("clock", ["wall", "virtual"])
def test_a_trace_that_ends_fails_all_alike(comm, clock, tmp_path):
    path = tmp_path / "short.csv"
    path.write_text("time_s,mbps\n0,1\n0.001,1\n")
    model = model_over(comm, network=f"trace:{path}", clock=clock)
    inputs, _ = random_batch(model.config, 1, seed=2)
    model.use("sp")
    if comm.size == 1:
        model(inputs)
        return
    for _ in range(2):  # in the middle of a pass, and before it starts
        with pytest.raises(InputError, match="before the run does") as caught:
            model(inputs)
        assert caught.value.collective


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clock": "solar"}, "clock 'solar' is unknown; use one of wall, virtual"),
        ({"clock": "virtual"}, "cannot time the real network; give --network"),
        ({"speed": 2}, "speed 2 is for the virtual clock"),
        ({"clock": "virtual", "network": "1Gbps", "speed": [1, 0]}, "speed 1,0 does not fit 2 ranks"),
        ({"clock": "virtual", "network": "1Gbps", "speed": [1, 2, 3]}, "speed 1,2,3 does not fit 2 ranks"),
        ({"deadline": "5"}, "deadline: duration '5' has no unit"),
        ({"missing": "guess"}, "missing = 'guess' is unknown; use one of auto, drop, mean, predict"),
        ({"seed": -1}, "seed -1 is negative"),
    ],
)
def test_wrong_conditions_are_answered(options, message):
    with pytest.raises(InputError, match=message):
        parse_conditions(2, **options)


def test_report_is_json():
    from mpi4py import MPI

    model = model_over(MPI.COMM_SELF, network="10Mbps,loss=1%", clock="virtual", deadline="5ms")
    inputs, _ = random_batch(model.config, 1, seed=0)
    model.use("astra")
    model(inputs)
    assert json.loads(json.dumps(model.report))["missing"] is None  # nothing travels on one rank
