"""Late codes and blocks without codes in the cost model: bytes as in the engine, waits hidden, advice where it pays."""

from dataclasses import replace

import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.every import in_every
from astra_mpi.convert.presets import preset_config
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.costs.latency import Network, assumed_speeds, latency, transfer_s
from astra_mpi.costs.setting import Setting
from astra_mpi.costs.strategies import STRATEGIES
from astra_mpi.costs.wires import Coding, coding_of
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.planner.advice import advice
from astra_mpi.planner.plan import plan
from astra_mpi.planner.waiting import fewer_waits, waiting_advice
from helpers.fakes import bert_config, llama_config, model_file

CODEC = CodecConfig(site="normed", stages=4, codebook_size=256)


def setting(codec=CODEC, rtt_s=0.05, config=None, mbps=10, **changes):
    config = config or preset_config("vit-base", 1024)
    return Setting(
        config, 1024, (assumed_speeds(100),) * 4, Network(mbps * 1e6, rtt_s), coding=Coding(codec), **changes
    )


@pytest.mark.mpi
@pytest.mark.parametrize("predict", ["linear", "next"])
@pytest.mark.parametrize("config", [bert_config(n_layers=5), llama_config(n_layers=5)], ids=["bert", "llama"])
def test_bytes_are_those_of_the_engine(comm, config, predict):
    for stages in (3, (0, 2, 0, 4, 1)):
        awaited = () if stages == 3 else (3, 4)
        codec = CodecConfig(site="normed", stages=stages, codebook_size=16, predict=predict, awaited=awaited)
        model = Model(model_file(config, codec), comm, get_backend("numpy", comm))
        inputs, mask = random_batch(config, 1, 23)
        for strategy in ("astra", "astra:late"):
            model.use(strategy)
            model(inputs, mask)
            at = Setting(config, 23, (assumed_speeds(50),) * comm.size, Network(1e7, 0), coding=coding_of(model.codec))
            cost = STRATEGIES[strategy](at.job(at.even), at.coding)
            assert model.report["contributed_bytes"] == cost.contributed_bytes()


@pytest.mark.parametrize("predict", ["linear", "next"])
def test_a_whole_block_hides_an_exchange(predict):
    """With a round trip below a block's time late codes wait at the end only; beyond it, for the rest."""
    at = setting(replace(CODEC, predict=predict))
    alike = {}
    for rtt_s in (0.0, 0.02, 0.05, 0.5):
        found = {}
        for name in ("astra", "astra:late"):
            cost = STRATEGIES[name](at.job(at.even), at.coding)
            took = latency(cost, at.speeds, Network(10e6, rtt_s))
            found[name] = took.wait - latency(replace(cost, closing_bytes=0), at.speeds, Network(1e15, 0)).wait
            found[name] -= took.wait - latency(replace(cost, closing_bytes=0), at.speeds, Network(10e6, rtt_s)).wait
        alike[rtt_s] = found
        assert found["astra:late"] <= found["astra"] + 1e-9
    assert alike[0.05]["astra:late"] == pytest.approx(0, abs=1e-4)
    if predict == "next":
        assert alike[0.05]["astra"] > 0.05
    assert 0.5 < alike[0.5]["astra:late"] < 0.6 * alike[0.5]["astra"]  # ten exchanges of 0.25 s, two at once


@pytest.mark.parametrize("predict", ["linear", "next"])
def test_each_awaited_block_waits(predict):
    """At most a round trip each, in place of all blocks' waits."""
    at, waits = setting(replace(CODEC, predict=predict), rtt_s=0.2), []
    for awaited in ((), (4,), (4, 8), tuple(range(1, 12))):
        cost = STRATEGIES["astra:late"](at.job(at.even), Coding(replace(at.coding.codec, awaited=awaited)))
        waits.append(latency(replace(cost, closing_bytes=0), at.speeds, at.network).wait)
    assert waits == sorted(waits) and waits[2] - waits[0] < 2 * 0.2
    fresh = STRATEGIES["astra"](at.job(at.even), at.coding)
    assert waits[3] == pytest.approx(latency(replace(fresh, closing_bytes=0), at.speeds, at.network).wait, rel=1e-2)


def test_every_second_block_waits_half_as_often():
    waits = {}
    for every in (1, 2):
        codec = in_every(replace(CODEC, predict="next"), every, 12) if every > 1 else replace(CODEC, predict="next")
        assert codec.mean_bits(12) == pytest.approx(CODEC.mean_bits(12) * 11 / 12)
        cost = STRATEGIES["astra"](setting().job(setting().even), Coding(codec))
        waits[every] = latency(replace(cost, closing_bytes=0), setting().speeds, setting().network).wait
        assert sum(stage.repeats for stage in cost.stages if stage.transfer) == (11 if every == 1 else 6)
    assert waits[2] < 0.75 * waits[1]


def test_every_refuses_what_it_cannot_share():
    for codec, n, message in [
        (CODEC, 2, "blocks without codes need maps"),
        (replace(CODEC, predict="next"), 0, "at least 1"),
        (replace(CODEC, kind="grouped", predict="next"), 2, "for stages or bits"),
    ]:
        with pytest.raises(InputError, match=message):
            in_every(codec, n, 12)
    assert in_every(replace(CODEC, predict="linear"), 4, 12).stages == (0, 15, 0, 0, 0, 15, 0, 0, 0, 14, 0, 0)


def test_advice_where_the_round_trip_is_long():
    near, far = setting(rtt_s=1e-4), setting(rtt_s=0.2)
    assert "skipped" in next(row for row in plan(far)["strategies"] if row["strategy"] == "astra:late")
    told = waiting_advice(fewer_waits(far), plan(far)["strategies"])
    assert len(told) == 1 and "calibrate --predict next" in told[0] and "Measure what that costs" in told[0]
    assert not waiting_advice(fewer_waits(near), plan(near)["strategies"])
    mapped = setting(replace(CODEC, predict="next"), rtt_s=0.2)
    assert any("Use astra:late" in line for line in advice(plan(mapped) | {"size": 4}))
    quick = setting(replace(CODEC, predict="next"), rtt_s=1e-4)
    assert any("Use astra:" in line and "late" not in line for line in advice(plan(quick) | {"size": 4}))
    rows = fewer_waits(far)
    assert np.all(np.diff([row["latency_s"] for row in rows]) >= 0) and {row["every"] for row in rows} == {1, 2, 4}


def test_halves_of_a_batch():
    """Where there is a wait to fill and work to fill it with; the rest of a plan is that of whole batches."""
    far = {"rtt_s": 0.3, "mbps": 1000}
    rows = {n: {row["strategy"]: row for row in plan(setting(batch=n, **far))["strategies"]} for n in (1, 2)}
    assert not any(row.get("halves") for row in rows[1].values())
    assert rows[2]["astra"]["halves"] and not rows[2]["single"]["halves"]
    at = setting(batch=2, **far)
    for name in ("astra", "sp", "tp", "segment_means:8"):
        row = rows[2][name]
        whole = latency(STRATEGIES[name](at.job(at.even), at.coding), at.speeds, at.network)
        assert (row["latency_s"]["port"] < whole.total / 1.05 + 1e-9) == row["halves"]
        assert row["contributed_bytes"] == STRATEGIES[name](at.job(at.even), at.coding).contributed_bytes()
        ports_s = [transfer_s(s.transfer, at.network._replace(rtt_s=0), "port") * s.repeats for s in _sending(at, name)]
        assert row["latency_s"]["port"] >= max(sum(ports_s), whole.compute)
    assert any("two halves in turns" in line for line in advice(plan(at) | {"size": 4}))
    assert not plan(setting(batch=2, rtt_s=1e-5, mbps=1e6))["strategies"][1]["halves"]


def _sending(at, name):
    return [stage for stage in STRATEGIES[name](at.job(at.even), at.coding).stages if stage.transfer]
