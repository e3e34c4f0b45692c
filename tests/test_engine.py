"""Every strategy on P real ranks against the serial oracle that simulates P ranks by masks."""

import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.oracle.verify import verify
from helpers.fakes import bert_config, model_file, random_weights, vit_config
from helpers.turns import by_turns

pytestmark = pytest.mark.mpi

FAMILIES = {
    "vit": (vit_config(), None),
    "vit-odd": (vit_config(grid=(1, 7), qkv_bias=False, n_classes=0, channels=1), None),
    "vit-short": (vit_config(grid=(1, 1)), None),
    "bert": (bert_config(), 17),
    "bert-cls": (bert_config(pooling="cls"), 9),
    "bert-pooler": (bert_config(pooling="pooler", has_pooler=True, normalize=True), 8),
}
CODECS = {
    "residual": CodecConfig(stages=3, codebook_size=16),
    "grouped": CodecConfig(kind="grouped", groups=5, codebook_size=10),
    "one-code": CodecConfig(stages=1, codebook_size=9),
    "normed": CodecConfig(site="normed", stages=2, codebook_size=300),
    "kv": CodecConfig(site="kv", kind="grouped", groups=2, codebook_size=16),
    "kv-residual": CodecConfig(site="kv", stages=2, codebook_size=8),
    "one-entry": CodecConfig(stages=1, codebook_size=1),
    "subspace": CodecConfig(stages=3, codebook_size=16, encoder="subspace"),
    "subspace-one-code": CodecConfig(kind="grouped", codebook_size=300, encoder="subspace"),
    "subspace-kv": CodecConfig(site="kv", stages=2, codebook_size=8, encoder="subspace"),
}


def make_model(comm, config, codec_config=None, backend="numpy", weights=None, seed=0):
    file = model_file(config, codec_config, seed)
    return Model(file, comm, get_backend(backend, comm), weights)


def assert_verified(comm, model, inputs, mask, strategy):
    for check in verify(model, inputs, mask, [strategy]):
        assert check.passed, check
    comm.Barrier()


@by_turns(("family", "codec"), FAMILIES, CODECS)
def test_astra_equals_masked_oracle(comm, family, codec):
    config, n_tokens = FAMILIES[family]
    model = make_model(comm, config, CODECS[codec])
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    assert_verified(comm, model, inputs, mask, "astra")


@pytest.mark.parametrize("strategy", ["single", "sp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_strategies_equal_oracle(comm, family, strategy):
    config, n_tokens = FAMILIES[family]
    model = make_model(comm, config)
    inputs, mask = random_batch(config, 3, n_tokens, seed=2, ragged=True)
    assert_verified(comm, model, inputs, mask, strategy)


def answers(model, inputs, mask, strategy, **options):
    model.use(strategy, **options)
    return model(inputs, mask)


@pytest.mark.parametrize("codec", ["residual", "one-code", "kv"])
def test_ways_to_the_same_answer(comm, codec):
    """Tables or GEMM, counted keys or not, Numba or NumPy: one answer."""
    config, n_tokens = FAMILIES["vit"]
    model = make_model(comm, config, CODECS[codec])
    plain = make_model(comm, config, CODECS[codec], backend="reference")
    inputs, mask = random_batch(config, 2, n_tokens, seed=3)
    want = answers(plain, inputs, mask, "astra", remote="gemm", counted_keys=False)
    for remote in ("table", "gemm", "auto"):
        for counted in (True, False):
            got = answers(model, inputs, mask, "astra", remote=remote, counted_keys=counted)
            np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
            choices = model.report["choices"]
            assert choices["remote"] == remote or remote == "auto"
            assert choices["counted_keys"] is (counted and codec == "one-code" and choices["remote"] == "table")


def test_sp_sends_activations_or_keys_and_values(comm):
    config, n_tokens = FAMILIES["bert"]
    model = make_model(comm, config)
    inputs, mask = random_batch(config, 3, n_tokens, seed=4, ragged=True)
    exact = answers(model, inputs, mask, "single")
    counts = [int(n) for n in model.strategy.planned.lengths]
    assert counts == [17, 9, 1]
    for spec, width in (("sp", config.d_model), ("sp:kv", 2 * config.d_kv)):
        got = answers(model, inputs, mask, spec)
        np.testing.assert_allclose(got, exact, atol=1e-5 * np.abs(exact).max())
        sent = sum(model.report["contributed_bytes"])
        assert sent == (config.n_layers * sum(counts) * width * 4 if comm.size > 1 else 0)


@pytest.mark.parametrize("codec", CODECS)
def test_contributed_bytes_are_the_formula(comm, codec):
    """ceil(sum of n_r over sequences * codes per token * b / 8) per rank and block, and nothing on one rank."""
    config, n_tokens = FAMILIES["bert"]
    model = make_model(comm, config, CODECS[codec])
    inputs, mask = random_batch(config, 4, n_tokens, seed=5, ragged=True)
    answers(model, inputs, mask, "astra")
    codes, bits = CODECS[codec].codes_per_token, CODECS[codec].bits
    lengths = mask.sum(axis=1)
    for rank, sent in enumerate(model.report["contributed_bytes"]):
        own = sum(int(t) // comm.size + (rank < int(t) % comm.size) for t in lengths)
        expected = config.n_layers * -(-own * codes * bits // 8) if comm.size > 1 else 0
        assert sent == expected == model.report["formula_bytes"][rank]


def test_uneven_cut(comm):
    config, n_tokens = FAMILIES["bert"]
    model = make_model(comm, config, weights=[3.0] + [1.0] * (comm.size - 1))
    inputs, mask = random_batch(config, 3, n_tokens, seed=6, ragged=True)
    assert_verified(comm, model, inputs, mask, "astra")
    assert model.strategy.planned.counts[0, 0] == round(17 * 3 / (comm.size + 2))


def test_answer_does_not_depend_on_the_batch(comm):
    config, n_tokens = FAMILIES["bert"]
    model = make_model(comm, config)
    inputs, mask = random_batch(config, 4, n_tokens, seed=7, ragged=True)
    together = answers(model, inputs, mask, "astra")
    for s in range(len(inputs)):
        alone = model(inputs[s : s + 1], mask[s : s + 1])
        np.testing.assert_allclose(alone[0], together[s], atol=1e-5)


def test_same_bits_again(comm):
    config, n_tokens = FAMILIES["vit"]
    model = make_model(comm, config)
    inputs, mask = random_batch(config, 2, n_tokens, seed=8)
    model.use("astra", remote="table")
    assert np.array_equal(model(inputs, mask), model(inputs, mask))


def test_masked_tokens_are_dropped_and_keep_positions(comm):
    config, _ = FAMILIES["bert"]
    model = make_model(comm, config)
    inputs, _ = random_batch(config, 2, 12, seed=9)
    mask = np.array([[0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1], [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]])
    assert_verified(comm, model, inputs, mask, "astra")


@pytest.mark.parametrize("codec", ["residual", "one-code"])
def test_empty_batch_and_empty_sequence(comm, codec):
    config, _ = FAMILIES["bert"]
    model = make_model(comm, config, CODECS[codec])
    model.use("astra")
    assert model(np.zeros((0, 5), np.int64)).shape == (0, config.d_model)
    answer = model(np.ones((2, 5), np.int64), np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]))
    assert np.isfinite(answer).all()
    assert not answer[1].any()


def test_wrong_rank_is_found(comm):
    """Another codebook on one rank must not pass as a near-tie."""
    config, n_tokens = FAMILIES["bert"]
    last = comm.size - 1
    model = make_model(comm, config, seed=1 if comm.rank == last else 0)
    same = make_model(comm, config, seed=0)
    model.family.w, model.blocks, model.weights = same.family.w, same.blocks, same.weights  # codebooks differ
    inputs, mask = random_batch(config, 2, n_tokens, seed=10)
    checks = verify(model, inputs, mask, ["sp:x", "sp:kv", "astra:codes"])
    if comm.rank == 0:
        assert [check.strategy for check in checks] == ["sp", "sp:kv", "astra"]
        assert checks[0].passed
        assert checks[1].passed
        assert checks[2].passed == (comm.size == 1)
        assert comm.size == 1 or "nearest" in checks[2].reason


@pytest.mark.parametrize("bad_rank", [0, 1])
def test_one_rank_failing_in_the_middle_fails_all_alike(comm, bad_rank):
    config, n_tokens = FAMILIES["bert"]
    model = make_model(comm, config)
    inputs, mask = random_batch(config, 2, n_tokens, seed=11)
    model.use("astra")
    want = model(inputs, mask)
    bad_rank = min(bad_rank, comm.size - 1)
    output = model.blocks[1].output
    if comm.rank == bad_rank:
        model.blocks[1].output = lambda *_: 1 / 0
    with pytest.raises(Exception, match="ZeroDivisionError") as caught:
        model(inputs, mask)
    assert caught.value.collective
    model.blocks[1].output = output
    np.testing.assert_array_equal(model(inputs, mask), want)  # nothing leaks into the next call


def test_inputs_must_be_the_same_on_all_ranks(comm):
    config, n_tokens = FAMILIES["bert"]
    model = make_model(comm, config)
    inputs, mask = random_batch(config, 2, n_tokens, seed=comm.rank)
    model.use("astra")
    if comm.size == 1:
        model(inputs, mask)
    else:
        with pytest.raises(InputError, match="inputs differ between ranks"):
            model(inputs, mask)


@pytest.mark.parametrize(
    ("family", "inputs", "message"),
    [
        ("bert", np.full((1, 3), 50), r"token id 50 .* outside 0\.\.49"),
        ("bert", np.full((1, 3), -1), "token id -1"),
        ("bert", np.zeros((1, 41), int), "this model has 40"),
        ("bert", np.zeros((1, 3)), "integers"),
        ("vit", np.zeros((1, 1, 12, 20), np.float32), r"channels.*3, 12, 20"),
        ("vit", np.zeros((1, 3, 12, 20), np.int64), "float32"),
    ],
)
def test_bad_inputs_on_one_rank_fail_all(comm, family, inputs, message):
    config, n_tokens = FAMILIES[family]
    model = make_model(comm, config)
    good, mask = random_batch(config, 1, n_tokens, seed=12)
    model.use("astra")
    with pytest.raises(InputError, match=message):
        model(inputs) if comm.rank == comm.size - 1 else model(good, mask)


def test_gathered_hidden_states_only_on_rank_0(comm):
    config, n_tokens = FAMILIES["vit"]
    model = make_model(comm, config)
    inputs, mask = random_batch(config, 2, n_tokens, seed=13)
    model.use("sp")
    _, hidden = model(inputs, mask, gather=True)
    assert (hidden is None) == (comm.rank != 0)
    if comm.rank == 0:
        assert hidden.shape == (2, 16, 24)


def test_random_weights_differ_by_seed():
    assert not np.array_equal(
        random_weights(vit_config(), 0)["embed.class"], random_weights(vit_config(), 1)["embed.class"]
    )
