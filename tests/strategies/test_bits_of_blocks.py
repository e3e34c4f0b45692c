"""Scalar codes, and blocks that differ in their stages: ranks equal the oracle, and send the bytes of the formula."""

import dataclasses

import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.costs.strategies import STRATEGIES
from astra_mpi.costs.wires import Coding
from astra_mpi.costs.work import Job, shape_of
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import AstraError
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.oracle.verify import verify
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file, vit_config
from helpers.turns import by_turns

pytestmark = pytest.mark.mpi

FAMILIES = {
    "vit": (vit_config(n_layers=3), None),
    "bert-cls": (bert_config(pooling="cls", n_layers=3), 9),
    "gpt2": (gpt2_config(n_layers=3), 13),
    "llama": (llama_config(n_layers=3), 19),
}
#: with what a token costs in each block
CODECS = {
    "scalar": (CodecConfig(kind="scalar", vector_bits=21), [21] * 3),  # after two stages of 8 bits
    "scalar-kv": (CodecConfig(site="kv", kind="scalar", vector_bits=((7, 0), 12, (3, 18))), [7, 24, 21]),
    "scalar-predicted": (
        CodecConfig(site="normed", kind="scalar", vector_bits=19, codebook_size=16, predict="linear"),
        [0, 19, 19],
    ),
    "stages": (CodecConfig(stages=(3, 0, 1), codebook_size=16), [12, 0, 4]),
    "stages-kv": (CodecConfig(site="kv", stages=((1, 3), 0, (2, 0)), codebook_size=9), [16, 0, 8]),
    "stages-predicted": (CodecConfig(site="normed", stages=(0, 0, 3), codebook_size=9, predict="linear"), [0, 0, 12]),
}


@by_turns(("family", "codec"), FAMILIES, CODECS)
def test_equals_the_oracle_and_the_formula(comm, family, codec):
    (config, n_tokens), (codes, bits) = FAMILIES[family], CODECS[codec]
    model = Model(model_file(config, codes), comm, get_backend("numpy", comm))
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    for strategy in ("astra", "astra:inputs"):
        for check in verify(model, inputs, mask, [strategy]):
            assert check.passed, check
        comm.Barrier()
    if comm.size == 1:
        return
    counts = model.layout(model.prepare(inputs, mask).lengths).token_counts
    heard = counts[:-1] if model.layout(model.prepare(inputs, mask).lengths).forward else counts
    wanted = [-(-int(n) * b // 8) for n in heard for b in bits[1:]]  # astra:inputs sends nothing of block 0
    assert sum(model.report["contributed_bytes"]) == sum(wanted)
    assert model.report["bits_per_token_per_block"] == pytest.approx(sum(bits[1:]) / 3)
    assert model.exchange.n_started == model.strategy.n_exchanges == np.count_nonzero(bits[1:])


def test_tokens_that_cost_nothing_have_the_keys_of_the_mean(comm):
    """With 0 stages everywhere all far tokens of a block are one: as codebooks of a single entry, the mean, say it."""
    config, n_tokens = FAMILIES["llama"]
    model = Model(model_file(config, CodecConfig(site="kv", stages=0)), comm, get_backend("numpy", comm))
    inputs, _ = random_batch(config, 2, n_tokens, seed=3)
    model.use("astra")
    answer = model(inputs)
    other = dataclasses.replace(model_file(config, CodecConfig(site="kv", stages=0)), codec=model.codec)
    one = Model(other, comm, get_backend("reference", comm))
    one.use("astra")
    np.testing.assert_allclose(one(inputs), answer, atol=1e-4 * np.abs(answer).max())
    assert sum(model.report["contributed_bytes"]) == model.exchange.n_started == 0


@pytest.mark.parametrize("codec", ["stages", "stages-kv", "stages-predicted"])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_rank_that_fails_beside_blocks_that_send_nothing_holds_up_nobody(comm, codec, failing, monkeypatch):
    config, n_tokens = FAMILIES["llama"]
    model = Model(model_file(config, CODECS[codec][0]), comm, get_backend("numpy", comm))
    model.use("astra")
    inputs, _ = random_batch(config, 2, n_tokens, seed=3)
    answer = model(inputs)

    def fails(*_):
        raise MemoryError("no room")

    with monkeypatch.context() as broken:
        if comm.rank == comm.size - 1:
            broken.setattr(model.blocks[failing], "output", fails)
        with pytest.raises(AstraError, match="no room"):
            model(inputs)
    assert np.array_equal(model(inputs), answer)


@pytest.mark.parametrize("codec", ["stages", "stages-kv", "stages-predicted"])
def test_what_is_known_is_never_missed(comm, codec):
    """On a network that loses messages, blocks that send nothing are as the oracle has them."""
    config, n_tokens = FAMILIES["llama"]
    conditions = parse_conditions(comm.size, network="100Mbps,loss=40%")
    model = Model(model_file(config, CODECS[codec][0]), comm, get_backend("numpy", comm), None, conditions)
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    for check in verify(model, inputs, mask, ["astra"]):
        assert check.passed and "skipped" not in check.reason, check
    silent = [i for i, bits in enumerate(CODECS[codec][1]) if not bits]
    assert not model.strategy.arrived.missing[silent].any()


def test_costs_count_the_bytes_of_every_block(comm):
    config, _ = FAMILIES["gpt2"]
    codes, bits = CODECS["stages-kv"]
    cost = STRATEGIES["astra"](Job(shape_of(config), (5, 4, 4)), Coding(codes))
    sent = [stage.transfer.contributed for stage in cost.stages if stage.transfer for _ in range(stage.repeats)]
    wanted = [tuple(-(-n * b // 8) for n in (5, 4, 0)) for b in bits if b]
    assert sorted(sent) == sorted(wanted)
