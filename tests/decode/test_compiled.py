"""Tokens in compiled calls, against blocks computed one operation after another: every format of weights and every type
of kept keys, alone and shared by threads."""

from types import SimpleNamespace

import numpy as np
import pytest

from astra_mpi.caches.rows import new_rows
from astra_mpi.codec.config import CodecConfig
from astra_mpi.decode.compiled import CompiledStep
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.kernels.cpu import _team, token
from astra_mpi.kernels.reference_token import kept
from helpers.fakes import gpt2_config, llama_config, model_file

#: widths that fill strips and vectors, and some that do not
WIDE = dict(d_model=64, n_heads=4, n_kv_heads=2, d_ff=96, vocab_size=61)
CONFIGS = {
    "llama": llama_config(**WIDE, attention_bias=True, mlp_bias=True, tied=False),
    "odd": llama_config(d_model=60, n_heads=6, n_kv_heads=2, d_ff=37),
    "three": llama_config(d_model=48, n_heads=6, n_kv_heads=3, d_ff=40),
    "gpt2": gpt2_config(**WIDE | dict(n_kv_heads=4)),
    "groups": llama_config(d_model=288, n_heads=4, n_kv_heads=2, d_ff=520, n_layers=1),
}
#: how far a step of a type lies from the same step computed otherwise, in largest logits
OFF = {"float32": 2e-6, "bfloat16": 2e-2, "int8": 6e-2}


def make_model(comm, config, dtype="float32", compute="float32"):
    model = Model(model_file(config, dtype=dtype), comm, get_backend("numpy", comm, compute=compute))
    model.use("single")
    return model


def steps(model, n_sequences, n_prompt=9, n_new=6):
    """Logits (n_new, B, V) of a generation whose tokens are given; prompts of unequal lengths."""
    rng = np.random.default_rng(n_sequences)
    ids = rng.integers(0, model.config.vocab_size, (n_sequences, n_prompt))
    mask = np.arange(n_prompt) < rng.integers(1, n_prompt + 1, n_sequences)[:, None]
    given = rng.integers(0, model.config.vocab_size, (n_new, n_sequences))
    found = []

    def sample(logits, sequences, step):
        found.append(logits.copy())
        return given[step, sequences]

    model.generate(ids, mask, max_new_tokens=n_new, sample=sample, decode="local")
    return np.array(found)


def both_ways(model, *shape):
    """`steps` in compiled calls and one operation after another, and the calls for blocks."""
    calls, run = [], CompiledStep.run

    def counted(self, first, last):
        calls.extend([(first, last)] if first == 0 else [])
        run(self, first, last)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledStep, "run", counted)
        compiled = steps(model, *shape)
    whole = model.compiled
    model.__dict__["compiled"] = None
    plain = steps(model, *shape)
    model.__dict__["compiled"] = whole
    return compiled, plain, calls


@pytest.mark.parametrize("n_sequences", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["llama", "odd", "gpt2"])
def test_stored_formats(comm, name, dtype, n_sequences):
    """One call a token, with the numbers of float32 arithmetic."""
    model = make_model(comm, CONFIGS[name], dtype)
    compiled, plain, calls = both_ways(model, n_sequences)
    assert calls == [(0, 4 * model.config.n_layers)] * 5
    np.testing.assert_allclose(compiled, plain, atol=OFF["float32"] * np.abs(plain).max())


@pytest.mark.parametrize("n_sequences", [1, 3, 6])
@pytest.mark.parametrize("name", ["llama", "odd", "groups"])
@pytest.mark.parametrize("compute", ["bfloat16", "int8"])
def test_narrow_products_and_keys(comm, name, compute, n_sequences):
    """Close to blocks computed otherwise in the same type, and about as far from float32 as these."""
    model = make_model(comm, CONFIGS[name], compute=compute)
    compiled, plain, calls = both_ways(model, n_sequences)
    assert calls
    exact, scale = steps(make_model(comm, CONFIGS[name]), n_sequences), np.abs(plain).max()
    assert 0 < np.abs(compiled - exact).max() < OFF[compute] * scale
    np.testing.assert_allclose(compiled, plain, atol=OFF[compute] * scale)
    error, others = (np.sqrt(((x - exact) ** 2).mean()) for x in (compiled, plain))
    assert error < 1.5 * others


@pytest.mark.skipif(not token.HAS_BLOCKS, reason="blocks are multiplied one operation after another here")
@pytest.mark.parametrize("n_sequences", [1, 5])
@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "q4_1"])
def test_blocks(comm, dtype, n_sequences):
    model = make_model(comm, CONFIGS["llama"], dtype, "int8")
    compiled, plain, calls = both_ways(model, n_sequences)
    assert calls
    np.testing.assert_allclose(compiled, plain, atol=OFF["int8"] * np.abs(plain).max())


def test_more_rows_than_a_call_takes(comm):
    model = make_model(comm, CONFIGS["llama"])
    compiled, plain, calls = both_ways(model, 17)
    assert not calls
    assert np.array_equal(compiled, plain)


@pytest.mark.parametrize(
    ("name", "dtype", "compute", "n_sequences", "n_threads"),
    [
        ("llama", "int8", "float32", 3, 3),
        ("gpt2", "float32", "bfloat16", 3, 3),
        *(("three", "float32", compute, 1, 2) for compute in ("float32", "bfloat16", "int8")),
        ("odd", "float32", "float32", 2, 3),
    ],
)
def test_threads_share_a_token(comm, name, dtype, compute, n_sequences, n_threads):
    """To the same bits as one thread: every number is made by one of them, also where key heads are left over."""
    alone = steps(make_model(comm, CONFIGS[name], dtype, compute), n_sequences)
    before = _team.size()
    try:
        _team.set_size(n_threads)
        shared = steps(make_model(comm, CONFIGS[name], dtype, compute), n_sequences)
    finally:
        _team.set_size(before)
    assert np.array_equal(alone, shared)


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("d_head", [64, 20, 7])
def test_kept_rows_are_rounded_once(comm, compute, d_head):
    """Appended in parts, with room made in between; cut off and filled again, as conversations do."""
    config = SimpleNamespace(n_kv_heads=2, d_head=d_head)
    kernels = get_backend("numpy", comm, compute=compute).kernels
    kv = np.random.default_rng(d_head).normal(0, 3, (50, 4 * d_head)).astype(np.float32)
    rows = new_rows(config, 5, kernels)
    for a, b, end in ((0, 5, 5), (5, 37, 30), (30, 31, 31), (31, 50, 50)):
        rows.make_room(b)
        rows.append(kv[a:b])
        rows.n = end
    want = kv.reshape(50, 2, 2, d_head).transpose(1, 2, 0, 3)
    keys, values = (rows.keys, rows.values) if compute == "float32" else rows.wide()
    half_steps = {
        "float32": 0,
        "bfloat16": np.abs(want) * 2.0**-8,
        "int8": np.abs(want).max(axis=3, keepdims=True) / 253,
    }
    got, rounded = np.stack([keys[:, :50], values[:, :50]]), kept(want, compute)
    assert (np.abs(rounded - want) <= half_steps[compute]).all()
    ties = np.abs(got - rounded) > 1e-6 * np.abs(want).max()  # one step apart where a number lies between two
    assert ties.mean() < 1e-3 and (np.abs(got - want) <= half_steps[compute]).all()


@pytest.mark.mpi
def test_far_tokens_as_keys_and_as_codes_are_the_same(comm):
    """Of `astra` on several ranks; on one there is nothing far."""
    config = CONFIGS["llama"]
    found = []
    for far in ("keys", "codes"):
        file = model_file(config, CodecConfig(site="kv", stages=2, codebook_size=16))
        model = Model(file, comm, get_backend("numpy", comm))
        model.use("astra")
        ids = np.random.default_rng(0).integers(0, 61, (1, 24))
        found.append(model.generate(ids, max_new_tokens=8, far=far))
    assert np.array_equal(*found)
