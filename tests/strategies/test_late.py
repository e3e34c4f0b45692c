"""Codes that come a block late, and blocks that have none because codes before them say enough: equal to the oracle."""

from itertools import count

import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.oracle.verify import verify
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file, vit_config

pytestmark = pytest.mark.mpi

FAMILIES = {
    "vit": (vit_config(n_layers=4), None),
    "bert-cls": (bert_config(pooling="cls", n_layers=5), 9),
    "gpt2": (gpt2_config(n_layers=4), 13),
    "llama": (llama_config(n_layers=5), 19),
    "windows": (llama_config(n_layers=4, windows=(0, 4, 0, 4)), 19),
}
#: kinds of maps, and of codes that they are from
CODECS = {
    "linear": dict(predict="linear", stages=3, codebook_size=16, inputs=2),
    "next": dict(predict="next", stages=3, codebook_size=16),
    "one-code": dict(predict="next", stages=1, codebook_size=9),
    "grouped": dict(predict="next", kind="grouped", groups=5, codebook_size=10),
    "sinks": dict(predict="next", stages=2, codebook_size=16, sinks=2),
    "subspace": dict(predict="next", stages=2, codebook_size=16, encoder="subspace"),
}


def make_model(comm, family, codec="next", codes_of=None, compute="float32", awaited=(), **conditions):
    """codes_of: stages per block, of which some may be 0. awaited: blocks that wait for their own codes."""
    config, _ = FAMILIES[family]
    settings = CODECS[codec] | {"awaited": awaited} | ({} if codes_of is None else {"stages": codes_of})
    file = model_file(config, CodecConfig(site="normed", **settings))
    uneven = [1.0 + 2 * (r % 3) for r in range(comm.size)]
    conditions = parse_conditions(comm.size, **conditions)
    return Model(file, comm, get_backend("numpy", comm, compute=compute), uneven, conditions)


def inputs_of(family):
    return random_batch(FAMILIES[family][0], 3, FAMILIES[family][1], seed=1, ragged=True)


def assert_verified(comm, model, family, strategies=("astra:late",)):
    checks = verify(model, *inputs_of(family), strategies)
    assert all(check.passed and not check.reason for check in checks), checks
    comm.Barrier()


CASES = [(family, codec) for family in ("llama", "windows") for codec in ("linear", "next")]
CASES += [("vit", "next"), ("bert-cls", "linear"), ("bert-cls", "grouped"), ("gpt2", "one-code"), ("gpt2", "sinks")]
CASES += [("bert-cls", "subspace")]


@pytest.mark.parametrize(("family", "codec"), CASES)
def test_late_codes_equal_the_oracle(comm, family, codec):
    """Neither the first block nor the last one sends anything: nothing comes after the last."""
    model = make_model(comm, family, codec)
    assert_verified(comm, model, family, ("astra:late", "astra:inputs:fresh"))
    sent = {}
    for strategy in ("astra", "astra:late"):
        model.use(strategy)
        model(*inputs_of(family))
        sent[strategy] = sum(model.report["contributed_bytes"]), model.report["bits_per_token_per_block"]
        assert model.report["contributed_bytes"] == model.report["formula_bytes"]
    n = FAMILIES[family][0].n_layers
    for fresh, late in zip(*(sent[strategy] for strategy in ("astra", "astra:late")), strict=True):
        assert late * (n - 1) == pytest.approx(fresh * (n - 2))


@pytest.mark.parametrize(("family", "stages"), [("bert-cls", (1, 2, 0, 2, 0)), ("llama", (1, 0, 0, 3, 0))])
@pytest.mark.parametrize("codec", ["linear", "next"])
def test_blocks_without_codes_follow_from_those_before(comm, codec, family, stages):
    model = make_model(comm, family, codec, stages)
    assert_verified(comm, model, family, ("astra:codes", "astra:late"))
    model.use("astra")
    assert model.strategy.n_exchanges == (0 if comm.size == 1 else sum(n > 0 for n in stages[1:]))


@pytest.mark.parametrize("awaited", [(1, 2), (3, 4)])
@pytest.mark.parametrize("codec", ["linear", "next"])
def test_awaited_blocks_see_their_own_codes(comm, codec, awaited):
    """Also the last block, which then sends; a block without codes has nothing to wait for."""
    model = make_model(comm, "llama", codec, (1, 2, 2, 0, 2), awaited=awaited)
    assert_verified(comm, model, "llama", ("astra:codes", "astra:late"))
    last_too = 4 in awaited
    assert model.strategy.n_exchanges == (0 if comm.size == 1 else 2 + last_too)
    assert model.report["bits_per_token_per_block"] == pytest.approx(4 * (4 + 2 * last_too) / 5)


@pytest.mark.parametrize(("codec", "missing"), [("linear", "predict"), ("next", "drop"), ("next", "mean")])
def test_late_codes_may_be_lost(comm, codec, missing):
    for family, stages, awaited in (("bert-cls", None, ()), ("llama", (1, 2, 0, 2, 2), (3,))):
        model = make_model(
            comm, family, codec, stages, awaited=awaited, network="real,loss=40%", seed=3, missing=missing
        )
        assert_verified(comm, model, family)
        if comm.size > 1:
            assert model.report["missing"]["lost"] > 0


def test_a_deadline_is_of_the_moment_when_late_codes_are_needed(comm):
    """Nobody waits: some codes have come by themselves, and what has not stays as predicted."""
    for conditions in ({}, {"network": "100Mbps,rtt=1ms", "clock": "virtual"}):
        model = make_model(comm, "llama", "linear", deadline="0s", **conditions)
        assert_verified(comm, model, "llama")


@pytest.mark.parametrize(("compute", "codec"), [("bfloat16", "next"), ("int8", "linear")])
def test_narrow_products(comm, compute, codec):
    assert_verified(comm, make_model(comm, "llama", codec, compute=compute), "llama")


def test_two_exchanges_are_under_way_and_none_is_waited_for(comm, monkeypatch):
    """By a clock on which every step takes as long, a round trip that is shorter than a block's own work is waited for
    at the end alone."""
    steps, rtt_s, waits = count(), 36e-3, {}
    monkeypatch.setattr("time.thread_time", lambda: 1e-3 * next(steps))
    for strategy in ("astra", "astra:late"):
        for rtt in (0, rtt_s):
            model = make_model(comm, "llama", "linear", network=f"10Gbps,rtt={1e3 * rtt}ms", clock="virtual")
            model.use(strategy)
            model(*inputs_of("llama"))
            waits[strategy, rtt] = model.report["latency_s"]["exchange_wait"]
    late, fresh = (waits[name, rtt_s] - waits[name, 0] for name in ("astra:late", "astra"))
    if comm.size > 1:
        assert late <= rtt_s / 2 < fresh


def test_a_failure_in_the_middle_ends_all_ranks(comm):
    """A rank that fails takes part in the exchanges that others have started or will start."""
    model = make_model(comm, "llama", "linear")
    model.use("astra:late")
    model(*inputs_of("llama"))
    block = model.blocks[3]
    whole = block.output
    if comm.rank == comm.size - 1:
        block.output = lambda x, attended: 1 / 0
    with pytest.raises(Exception, match="division by zero"):
        model(*inputs_of("llama"))
    block.output = whole
    assert_verified(comm, model, "llama")


def test_codes_without_maps_cannot_be_late(comm):
    file = model_file(FAMILIES["llama"][0], CodecConfig(site="normed", stages=2, codebook_size=16))
    model = Model(file, comm, get_backend("numpy", comm))
    with pytest.raises(InputError, match=r"strategy astra:late: .*calibrate --predict linear"):
        model.use("astra:late")
    model.use("astra")
    assert np.isfinite(model(*inputs_of("llama"))).all()
