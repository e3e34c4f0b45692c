"""Generation on P real ranks: every step against the serial oracle, and whole texts against loops without a cache."""

from dataclasses import replace

import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.oracle.reference import oracle
from helpers.architectures import on_ranks
from helpers.fakes import gpt2_config, llama_config, model_file
from helpers.sampling import Recorder
from helpers.turns import by_turns

pytestmark = pytest.mark.mpi

SCALED = dict(rope_type="llama3", rope_factor=4.0, rope_trained_positions=16, rope_theta=100.0)
FAMILIES = {
    "gpt2": gpt2_config(),
    "llama": llama_config(tied=False, attention_bias=True, **SCALED),
}
ARCHITECTURES = on_ranks()
CODECS = {
    "residual": CodecConfig(stages=3, codebook_size=16),
    "grouped": CodecConfig(kind="grouped", groups=5, codebook_size=10),
    "one-code": CodecConfig(stages=1, codebook_size=9),
    "normed": CodecConfig(site="normed", kind="grouped", groups=4, codebook_size=300),
    "normed-one-code": CodecConfig(site="normed", stages=1, codebook_size=9),
    "kv": CodecConfig(site="kv", stages=2, codebook_size=8),
    "kv-grouped": CodecConfig(site="kv", kind="grouped", groups=2, codebook_size=16),
}


def make_model(comm, config, codec=None, **changes):
    return Model(model_file(config, codec), comm, get_backend("numpy", comm), **changes)


def prompts(config, batch=4, n_tokens=17, seed=1):
    """Lengths from n_tokens down to 1: shorter than the number of ranks, and not divisible by it."""
    return random_batch(config, batch, n_tokens, seed=seed, ragged=True)


def assert_steps_equal_oracle(comm, model, ids, mask, decode, n_new, **changes):
    """Every step's logits, also of the prefill, are those of a whole pass of the oracle over prompt and new tokens."""
    recorder = Recorder()
    new = model.generate(ids, mask, max_new_tokens=n_new, decode=decode, sample=recorder, **changes)
    got, terms, layout = recorder.gathered(comm), model.strategy.oracle_terms(), model.strategy.planned
    if comm.rank == 0:
        ends = np.cumsum(layout.lengths)
        for s in range(len(ids)):
            prompt, order = ids[s][mask[s]], layout.order[s]
            own = np.repeat(np.arange(layout.size), layout.counts[s, order])
            mine = layout.sequence_order[ends[s] - len(prompt) : ends[s]]
            given = dict(terms)
            if "codes" in terms:  # nobody is sent a new token
                blank = np.zeros(n_new - 1, np.int64)
                given["codes"] = [
                    np.concatenate([c[mine], np.repeat(blank[:, None], c.shape[1], 1)]) for c in terms["codes"]
                ]
            tokens = np.concatenate([prompt, new[s, :-1]])
            owner = np.concatenate([own, np.full(n_new - 1, own[-1])])
            positions = np.flatnonzero(mask[s])
            positions = np.concatenate([positions, positions[-1] + 1 + np.arange(n_new - 1)])
            merged = n_new - 1 if decode == "merged" else 0
            given |= {"n_new": n_new - 1 - merged} if given.get("late") else {}
            want = oracle(
                model.config, model.weights, tokens, owner, layout.size, positions=positions, merged=merged, **given
            ).hidden[len(prompt) - 1 :]
            found = np.array([got[s, step] for step in range(n_new)])
            np.testing.assert_allclose(found, want, atol=2e-4 * np.abs(want).max(), err_msg=f"sequence {s}")


@by_turns(
    ("family", "codec", "remote", "way"),
    FAMILIES,
    CODECS,
    ["table", "gemm"],
    [("local", "keys"), ("local", "codes"), ("merged", "keys")],
)
def test_astra_steps_equal_oracle(comm, family, codec, remote, way):
    decode, far = way
    model = make_model(comm, FAMILIES[family], CODECS[codec])
    model.use("astra", remote=remote)
    assert_steps_equal_oracle(comm, model, *prompts(FAMILIES[family]), decode, 5, far=far)
    assert model.report["choices"]["decode"] == decode


@pytest.mark.parametrize(("decode", "remote"), [("local", "table"), ("local", "gemm"), ("merged", "table")])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_steps_after_predicted_codes_equal_oracle(comm, name, decode, remote):
    """Far tokens of the prompts are kept as the keys and values that their states gave."""
    config = FAMILIES.get(name) or ARCHITECTURES[name][0]
    model = make_model(comm, config, CodecConfig(site="normed", stages=2, codebook_size=16, predict="linear"))
    model.use("astra", remote=remote)
    assert_steps_equal_oracle(comm, model, *prompts(config), decode, 5)


@pytest.mark.parametrize(("decode", "far"), [("local", "keys"), ("local", "codes"), ("merged", "keys")])
@pytest.mark.parametrize("predict", ["linear", "next"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_steps_after_late_codes_equal_oracle(comm, name, predict, decode, far):
    """Prompts see far tokens as foretold, new tokens as the codes have made them, of the last block too."""
    if (predict, far) == ("linear", "codes"):
        pytest.skip("codes alone do not say what far tokens are")
    config = replace(FAMILIES[name], n_layers=5)
    awaited = (3, 4) if name == "llama" else ()  # these are foretold to nobody
    codec = CodecConfig(site="normed", stages=(1, 2, 0, 1, 2), codebook_size=16, predict=predict, awaited=awaited)
    model = make_model(comm, config, codec)
    model.use("astra:late")
    assert_steps_equal_oracle(comm, model, *prompts(config), decode, 4, far=far)
    assert model.report["contributed_bytes"] == model.report["formula_bytes"]
    if comm.size > 1:
        last_too = decode == "local" or 4 in awaited
        assert model.strategy.n_exchanges == 2 + last_too


SINKS = [
    ("llama", "kv", 1, "local", "keys"),
    ("llama", "kv", 1, "local", "codes"),
    ("gpt2", "one-code", 7, "local", "keys"),
    ("gpt2", "one-code", 7, "merged", "keys"),
    ("llama", "normed", 3, "merged", "keys"),
]


@pytest.mark.parametrize(("family", "codec", "sinks", "decode", "far"), SINKS)
def test_steps_with_sinks_equal_oracle(comm, family, codec, sinks, decode, far):
    """A rank that decodes alone keeps replicas, ranks that merge do not; some prompts are shorter than the sinks."""
    model = make_model(comm, FAMILIES[family], replace(CODECS[codec], sinks=sinks))
    model.use("astra")
    assert_steps_equal_oracle(comm, model, *prompts(FAMILIES[family]), decode, 5, far=far)


@pytest.mark.parametrize(("decode", "far"), [("local", "keys"), ("local", "codes"), ("merged", "keys")])
@pytest.mark.parametrize("name", ["mistral", "gemma2", "smollm3", "olmo2", "stablelm"])
def test_steps_with_windows_caps_and_norms_of_keys_equal_oracle(comm, name, decode, far):
    """Keys of the window alone, perhaps rebuilt from codes; some blocks with positions and some without."""
    config, site = ARCHITECTURES[name]
    sinks = 2 if name == "gemma2" else 0  # which windows hide in time
    model = make_model(comm, config, CodecConfig(site=site, stages=2, codebook_size=16, sinks=sinks))
    model.use("astra", remote="table")
    assert_steps_equal_oracle(comm, model, *prompts(config), decode, 5, far=far)


def test_counted_keys_or_not(comm):
    config = FAMILIES["gpt2"]
    for codec in ("one-code", "normed-one-code"):
        model = make_model(comm, config, CODECS[codec])
        model.use("astra", remote="table", counted_keys=False)
        assert_steps_equal_oracle(comm, model, *prompts(config), "local", 4)


@pytest.mark.parametrize("decode", ["local", "merged"])
@pytest.mark.parametrize("spec", ["single", "sp", "sp:kv", "segment_means:3", "astra:inputs"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rivals_steps_equal_oracle(comm, family, spec, decode):
    model = make_model(comm, FAMILIES[family])
    if model.obstacle(spec):
        pytest.skip("rotary")
    model.use(spec)
    assert_steps_equal_oracle(comm, model, *prompts(FAMILIES[family]), decode, 5)
