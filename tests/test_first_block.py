"""`astra:inputs`: a first block that sees far tokens exactly, made from the inputs, and exchanges nothing."""

import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.oracle.verify import verify
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file, vit_config
from helpers.turns import by_turns

pytestmark = pytest.mark.mpi

FAMILIES = {
    "vit": (vit_config(n_layers=3), None),
    "bert": (bert_config(n_layers=3), 17),
    "bert-pooler": (bert_config(pooling="pooler", has_pooler=True), 9),
    "gpt2": (gpt2_config(n_layers=3), 13),
    "llama": (llama_config(n_layers=3), 13),
}
CODECS = {
    "hidden": CodecConfig(stages=3, codebook_size=16),
    "one-code": CodecConfig(stages=1, codebook_size=9),
    "normed": CodecConfig(site="normed", stages=2, codebook_size=16),
    "kv": CodecConfig(site="kv", stages=2, codebook_size=8),
}


def make_model(comm, config, codec="hidden", weights=None, **conditions):
    conditions = parse_conditions(comm.size, **conditions)
    return Model(model_file(config, CODECS[codec]), comm, get_backend("numpy", comm), weights, conditions)


def assert_verified(comm, model, inputs, mask, **options):
    checks = verify(model, inputs, mask, ["astra:inputs"], **options)
    assert all(check.passed and not check.reason for check in checks), checks
    comm.Barrier()


@by_turns(("family", "codec"), FAMILIES, CODECS)
def test_equals_the_oracle_and_saves_an_exchange(comm, family, codec):
    config, n_tokens = FAMILIES[family]
    uneven = [1.0 + 2 * (r % 3) for r in range(comm.size)]
    model = make_model(comm, config, codec, uneven if codec == "hidden" else None)
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    assert_verified(comm, model, inputs, mask)
    sent = []
    for first in ("inputs", "codes"):
        model.use(f"astra:{first}", remote="table")  # measured otherwise, and the cut of causal models depends on it
        model(inputs, mask)
        sent.append(sum(model.report["contributed_bytes"]))
        assert model.report["choices"]["first"] == first
    assert sent[0] * config.n_layers == sent[1] * (config.n_layers - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_block_is_exact(comm, family):
    config, n_tokens = FAMILIES[family]
    config = type(config)(**config.as_dict() | {"n_layers": 1})
    model = make_model(comm, config)
    inputs, mask = random_batch(config, 2, n_tokens, seed=1, ragged=True)
    model.use("single")
    exact = model(inputs, mask)
    model.use("astra:inputs")
    found = model(inputs, mask)
    assert np.abs(found - exact).max() <= 1e-5 * np.abs(exact).max()
    assert sum(model.report["contributed_bytes"]) == 0 == model.report["distinct_keys"]


@pytest.mark.parametrize("treatment", ["drop", "mean"])
def test_nothing_of_the_first_block_is_lost(comm, treatment):
    config, n_tokens = FAMILIES["bert"]
    model = make_model(comm, config, network="real,loss=40%", missing=treatment, seed=3)
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    checks = verify(model, inputs, mask, ["astra:inputs"])
    assert all(check.passed for check in checks), checks
    comm.Barrier()
    if comm.size > 1:
        n_messages = (config.n_layers - 1) * comm.size * (comm.size - 1)
        assert model.report["missing"]["messages"] == n_messages


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_spread_sequences(comm, family):
    config, n_tokens = FAMILIES[family]
    inputs, mask = random_batch(config, 4, n_tokens, seed=1, ragged=True)
    assert_verified(comm, make_model(comm, config, "kv"), inputs, mask, spread=True)


def test_a_failure_on_one_rank_ends_all(comm, monkeypatch):
    config, n_tokens = FAMILIES["bert"]
    model = make_model(comm, config)
    inputs, mask = random_batch(config, 2, n_tokens, seed=1)
    model.use("astra:inputs")
    before = model(inputs, mask)
    if comm.Get_rank() == comm.Get_size() - 1:
        monkeypatch.setattr(model.blocks[0], "keys_values", None)
        monkeypatch.setattr(model.blocks[1], "output", None)
    with pytest.raises(Exception, match="NoneType"):
        model(inputs, mask)
    monkeypatch.undo()
    np.testing.assert_array_equal(model(inputs, mask), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_embedded_once(comm, family):
    """And what a rank takes of them is what it would have embedded itself, class tokens too."""
    config, n_tokens = FAMILIES[family]
    model = make_model(comm, config)
    inputs, mask = random_batch(config, 3, n_tokens or 15, seed=1, ragged=n_tokens is not None)
    batch, layouts = model.prepare(inputs, mask), []
    model.use("astra:inputs")
    layout, embed = model.layout(batch.lengths), model.family.embed
    model.strategy.begin(layout)
    rows = model.strategy.enter(lambda of: layouts.append(of) or embed(batch, of))
    assert layouts == [layout.everything if comm.size > 1 else layout]
    np.testing.assert_allclose(rows, embed(batch, layout), rtol=1e-5, atol=1e-6)
