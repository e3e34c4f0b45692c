"""Attention sinks: first tokens that every rank computes itself, against the serial oracle, and what they save."""

from dataclasses import replace

import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.oracle.verify import verify
from helpers.architectures import on_ranks
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file

pytestmark = pytest.mark.mpi

CONFIGS = {"gpt2": gpt2_config(), "llama": llama_config(n_layers=3), "gemma2": on_ranks()["gemma2"][0]}
CODECS = {
    "hidden": CodecConfig(stages=3, codebook_size=16),
    "one-code": CodecConfig(stages=1, codebook_size=9),
    "normed": CodecConfig(site="normed", kind="grouped", groups=3, codebook_size=300),
    "kv": CodecConfig(site="kv", stages=2, codebook_size=8),
}
CASES = [
    ("gpt2", "one-code", 1),
    ("gpt2", "normed", 7),
    ("llama", "kv", 1),
    ("llama", "hidden", 8),
    ("gemma2", "kv", 2),
    ("gemma2", "hidden", 7),
]


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


@pytest.mark.parametrize(("family", "codec", "sinks"), CASES)
def test_answers_equal_the_oracle(comm, family, codec, sinks):
    """Slices shorter than the sinks, ranks without a token of a sequence, and windows that hide a sink, too."""
    config = CONFIGS[family]
    assert_verified(comm, make_model(comm, config, codec, sinks), *ragged(config), "astra")


@pytest.mark.parametrize(("family", "weights"), [("gpt2", "causal"), ("llama", None), ("gemma2", "causal")])
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
@pytest.mark.parametrize(("family", "codec"), [("gpt2", "one-code"), ("gemma2", "kv")])
def test_lost_messages_leave_sinks(comm, family, codec, missing):
    config = CONFIGS[family]
    model = make_model(comm, config, codec, 2, network="real,loss=50%", missing=missing, seed=3)
    assert_verified(comm, model, *ragged(config))
    alone = make_model(comm, config, codec, comm.size, network="real,loss=100%", missing=missing)
    exact = make_model(comm, config, codec, 0)
    ids, _ = random_batch(config, 2, comm.size + 1, seed=2)  # all tokens before the last rank's are sinks
    alone.use("astra")
    exact.use("single")
    np.testing.assert_allclose(alone(ids), exact(ids), atol=2e-5)


def test_bfloat16(comm):
    config = CONFIGS["llama"]
    assert_verified(comm, make_model(comm, config, "kv", 2, compute="bfloat16"), *ragged(config))


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_sinks_are_not_sent_and_the_summary_names_them(comm, family, spread):
    config = CONFIGS[family]
    model, plain = (make_model(comm, config, "kv", sinks) for sinks in (3, 0))
    inputs, mask = random_batch(config, 2, 17, seed=1)
    for one in (model, plain):
        one.use("astra")
        one(inputs, mask, spread=spread)
        assert one.report["contributed_bytes"] == one.report["formula_bytes"]
    assert "sinks" not in plain.report["choices"]
    assert model.report["choices"].get("sinks", 0) == (3 if comm.size > 1 else 0)
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
    """All tokens are sinks: every prediction is the exact one's, and replicas add none."""
    config = CONFIGS["llama"]
    model = make_model(comm, config, "kv", 8)
    model.use("astra")
    one = make_model(comm, config, "kv", 0)
    one.use("single")
    ids, _ = random_batch(config, 2, 8, seed=4)
    got, want = (m.nll(ids, None, np.zeros(2, np.int64)) for m in (model, one))
    np.testing.assert_array_equal(got[:, 1], [7, 7])
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_encoders_have_none(comm):
    config = bert_config()
    model = make_model(comm, config, "hidden", 4)
    assert_verified(comm, model, *random_batch(config, 3, 17, seed=1, ragged=True))
    assert "sinks" not in model.report["choices"]
