"""Attention sinks: first tokens that every rank computes itself, against the serial oracle, and what they save."""

from dataclasses import replace

import numpy as np
import pytest

from astra_mpi.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.oracle.verify import verify
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file

pytestmark = pytest.mark.mpi

CONFIGS = {
    "gpt2": gpt2_config(),
    "llama": llama_config(n_layers=3),
    "windows": llama_config(n_layers=3, windows=(6, 0, 3), score_cap=5.0),
}
CODECS = {
    "hidden": CodecConfig(stages=3, codebook_size=16),
    "one-code": CodecConfig(stages=1, codebook_size=9),
    "normed": CodecConfig(site="normed", kind="grouped", groups=3, codebook_size=300),
    "kv": CodecConfig(site="kv", stages=2, codebook_size=8),
}


def make_model(comm, config, codec, sinks, compute="float32", weights=None, **conditions):
    file, backend = model_file(config, replace(CODECS[codec], sinks=sinks)), get_backend("numpy", comm, compute=compute)
    return Model(file, comm, backend, weights, parse_conditions(comm.size, **conditions))


def ragged(config, batch=4, n_tokens=17, seed=1):
    """Lengths from n_tokens down to 1: shorter than the number of ranks and than the number of sinks."""
    return random_batch(config, batch, n_tokens, seed=seed, ragged=True)


def assert_verified(comm, model, inputs, mask, spec="astra:codes", **how):
    for check in verify(model, inputs, mask, [spec], **how):
        assert check.passed and not check.reason, check
    comm.Barrier()


@pytest.mark.parametrize("spec", ["astra:codes", "astra:inputs"])
@pytest.mark.parametrize("sinks", [1, 7])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("family", CONFIGS)
def test_answers_equal_the_oracle(comm, family, codec, sinks, spec):
    """Slices that are shorter than the sinks, and ranks without a token of a sequence, too."""
    config = CONFIGS[family]
    assert_verified(comm, make_model(comm, config, codec, sinks), *ragged(config), spec)


@pytest.mark.parametrize("weights", [None, "causal"])
@pytest.mark.parametrize("family", CONFIGS)
def test_orders_of_ranks_padding_and_cuts(comm, family, weights):
    config = CONFIGS[family]
    model = make_model(comm, config, "kv", 3, weights=weights)
    inputs, mask = ragged(config, batch=5)
    assert_verified(comm, model, inputs, mask, spread=True)
    left = np.sort(mask, axis=1)  # padding in front: positions of sinks are not 0, 1, ..
    assert_verified(comm, model, inputs, left)
    holes = np.array([[0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1]])
    assert_verified(comm, model, inputs[:1, :12], holes)


@pytest.mark.parametrize("missing", ["drop", "mean"])
@pytest.mark.parametrize(("family", "codec"), [("gpt2", "one-code"), ("llama", "kv"), ("windows", "hidden")])
def test_losses_do_not_touch_sinks(comm, family, codec, missing):
    model = make_model(comm, CONFIGS[family], codec, 2, network="real,loss=50%", missing=missing, seed=3)
    assert_verified(comm, model, *ragged(CONFIGS[family]))
    if missing == "drop":  # nothing comes, and the first rank's only token is a sink: as if everything had
        all_lost = make_model(comm, CONFIGS[family], codec, 2, network="real,loss=100%", missing="drop")
        all_lost.use("astra")
        exact = make_model(comm, CONFIGS[family], codec, 0)
        exact.use("single")
        ids = np.arange(2 * comm.size)[None, : comm.size + 1] % 7
        counts = all_lost.layout(np.array([ids.shape[1]])).counts[0]
        if comm.size == 2:
            assert counts.tolist() == [2, 1]
            np.testing.assert_allclose(all_lost(ids), exact(ids), atol=2e-5)


def test_bfloat16(comm):
    config = CONFIGS["llama"]
    assert_verified(comm, make_model(comm, config, "kv", 2, compute="bfloat16"), *ragged(config))


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_sinks_are_not_sent_and_the_summary_names_them(comm, family, spread):
    config = CONFIGS[family]
    model, plain = (make_model(comm, config, "kv", sinks) for sinks in (3, 0))
    inputs, mask = random_batch(config, 2, 17, seed=1)
    for one in (model, plain):
        one.use("astra")
        one(inputs, mask, spread=spread)
        assert one.report["contributed_bytes"] == one.report["formula_bytes"]
    assert plain.report["choices"].get("sinks") is None and model.report["choices"].get("sinks") == (
        3 if comm.size > 1 else None
    )
    if not any(config.windows) and comm.size > 1:
        bits = model.codec.config.bits_per_token
        layout = model.strategy.planned
        own = np.zeros(comm.size, np.int64)
        for s, counts in enumerate(layout.counts):  # of each sequence all but the first three, slice after slice
            left = 3
            for rank in layout.order[s]:
                own[rank] += counts[rank] - min(left, counts[rank])
                left -= min(left, counts[rank])
        if not spread:
            own[-1] = 0
        assert model.report["contributed_bytes"] == [config.n_layers * -(-int(n) * bits // 8) for n in own]


def test_perplexity_counts_every_token_once(comm):
    """With codes that matter to nobody, each prediction is the exact one's: replicas add none."""
    config = CONFIGS["llama"]
    model = make_model(comm, config, "kv", 8)
    model.use("astra")
    one = make_model(comm, config, "kv", 0)
    one.use("single")
    ids, _ = random_batch(config, 2, 8, seed=4)
    got, want = (m.nll(ids, None, np.zeros(2, np.int64)) for m in (model, one))
    np.testing.assert_array_equal(got[:, 1], [7, 7])
    np.testing.assert_allclose(got, want, rtol=1e-5)  # all eight tokens are sinks


def test_encoders_have_none(comm):
    config = bert_config()
    model = make_model(comm, config, "hidden", 4)
    assert_verified(comm, model, *random_batch(config, 3, 17, seed=1, ragged=True))
    assert "sinks" not in model.report["choices"]
