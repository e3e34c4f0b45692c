"""Decoders on P real ranks: causal attention against the serial oracle, what travels, and to whom."""

import numpy as np
import pytest
from mpi4py import MPI

from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.costs.cut import token_cost
from astra_mpi.costs.work import shape_of
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.oracle.verify import verify
from astra_mpi.partition import even, finish_together
from astra_mpi.strategies import STRATEGIES
from helpers.fakes import gpt2_config, llama_config, model_file
from helpers.turns import by_turns

pytestmark = pytest.mark.mpi

SCALED = dict(rope_type="llama3", rope_factor=4.0, rope_trained_positions=16, rope_theta=100.0)
FAMILIES = {
    "gpt2": gpt2_config(),
    "gpt2-odd": gpt2_config(d_model=15, n_heads=3, n_kv_heads=3, d_ff=7, tied=False, n_layers=3),
    "llama": llama_config(),
    "llama-odd": llama_config(tied=False, attention_bias=True, mlp_bias=True, n_kv_heads=1, n_layers=3, **SCALED),
}
CODECS = {
    "hidden": CodecConfig(stages=3, codebook_size=16),
    "hidden-grouped": CodecConfig(kind="grouped", groups=5, codebook_size=10),
    "one-code": CodecConfig(stages=1, codebook_size=9),
    "normed": CodecConfig(site="normed", stages=2, codebook_size=300),
    "normed-one-code": CodecConfig(site="normed", kind="grouped", codebook_size=9),
    "kv": CodecConfig(site="kv", stages=2, codebook_size=8),
    "kv-grouped": CodecConfig(site="kv", kind="grouped", groups=2, codebook_size=16),
    "subspace": CodecConfig(stages=2, codebook_size=16, encoder="subspace"),
    "one-entry": CodecConfig(stages=1, codebook_size=1),
}


def make_model(comm, config, codec=None, **changes):
    return Model(model_file(config, codec), comm, get_backend("numpy", comm), **changes)


def ragged(config, batch=4, n_tokens=17, seed=1):
    """Lengths from n_tokens down to 1: shorter than the number of ranks, and not divisible by it."""
    return random_batch(config, batch, n_tokens, seed=seed, ragged=True)


def assert_verified(comm, model, inputs, mask, spec):
    for check in verify(model, inputs, mask, [spec]):
        assert check.passed and not check.reason, check
    comm.Barrier()


@by_turns(("family", "codec"), FAMILIES, CODECS)
def test_astra_equals_masked_oracle(comm, family, codec):
    config = FAMILIES[family]
    assert_verified(comm, make_model(comm, config, CODECS[codec]), *ragged(config), "astra:codes")


@by_turns(("family", "spec"), FAMILIES, ["single", "tp", "sp", "sp:kv", "sp:int8", "sp:kv:float16"])
def test_rivals_equal_oracle(comm, family, spec):
    config = FAMILIES[family]
    assert_verified(comm, make_model(comm, config), *ragged(config), spec)


@by_turns(("family", "spec", "dtype"), ["gpt2", "llama-odd"], ["tp", "sp", "astra"], ["float16", "bfloat16", "int8"])
def test_narrow_weights_equal_oracle(comm, family, spec, dtype):
    """On their own values; more rows than a product reads one by one, and fewer."""
    config = FAMILIES[family]
    model = Model(model_file(config, dtype=dtype), comm, get_backend("numpy", comm))
    inputs, mask = ragged(config)
    assert_verified(comm, model, inputs, mask, spec)
    assert_verified(comm, model, inputs[:1, :3], mask[:1, :3], spec)


def test_a_rank_of_tp_holds_its_part(comm):
    """Two key heads: two ranks have the attention between them, all have columns."""
    model = Model(model_file(FAMILIES["llama"], dtype="bfloat16"), comm, get_backend("numpy", comm))
    inputs, mask = ragged(FAMILIES["llama"])
    model.use("single")
    model(inputs, mask)
    whole = model.report["weight_bytes"]
    model.use("tp")
    model(inputs, mask)
    own = model.report["weight_bytes"]
    outside = sum(w.nbytes for name, w in model.weights.items() if "norm" in name or name.startswith("embed"))
    assert sum(n - outside for n in own) == whole[0] - outside
    assert comm.size == 1 or max(own) < whole[0] - (whole[0] - outside) // 3


@pytest.mark.parametrize("spec", ["tp", "segment_means:1", "segment_means:3", "bp", "bp:sp"])
def test_rivals_on_gpt2(comm, spec):
    config = gpt2_config(d_model=32, n_heads=8, n_kv_heads=8)
    model = make_model(comm, config)
    if model.obstacle(spec) is None:
        assert_verified(comm, model, *ragged(config), spec)
    else:
        assert spec.startswith("bp") and 8 % comm.size


@pytest.mark.parametrize("spec", ["segment_means:8", "bp"])
def test_rivals_that_do_not_take_llama_say_so(comm, spec):
    model = make_model(comm, FAMILIES["llama"])
    reason = model.obstacle(spec)
    assert "rotary" in reason and "use astra or sp" in reason
    with pytest.raises(InputError, match="rotary"):
        model.use(spec)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_holes_keep_positions(comm, family):
    config = FAMILIES[family]
    model = make_model(comm, config, CODECS["hidden"])
    inputs, _ = random_batch(config, 2, 12, seed=9)
    mask = np.array([[0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1], [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]])
    assert_verified(comm, model, inputs, mask, "astra:codes")
    model.use("single")
    shifted = np.roll(mask, 1, axis=1)  # other tokens: other answers
    assert not np.allclose(model(inputs, mask), model(inputs, shifted))


@pytest.mark.parametrize("weights", ["causal", "uneven"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_cuts(comm, family, weights):
    config = FAMILIES[family]
    uneven = [1.0] + [2.0] * (comm.size - 1)
    model = make_model(comm, config, weights=uneven if weights == "uneven" else weights)
    inputs, mask = ragged(config)
    assert_verified(comm, model, inputs, mask, "astra:codes")
    counts = model.strategy.planned.counts[0].tolist()
    assert model.report["choices"]["weights"] == (uneven if weights == "uneven" else "causal")
    cost = token_cost(shape_of(config), model.strategy.wire_costs())
    speeds = uneven if weights == "uneven" else [1.0] * comm.size
    assert counts == finish_together(17, speeds, cost).tolist()


@by_turns(
    ("family", "spec", "weights"),
    ["gpt2", "llama"],
    ["astra", "sp:kv:int8", "segment_means:3", "single"],
    [None, "causal", "uneven"],
)
def test_last_slices_spread_over_the_ranks(comm, family, spec, weights):
    """Each sequence has an order of ranks of its own, so that the last tokens of a batch lie on all of them."""
    uneven = [1.0] + [2.0] * (comm.size - 1)
    config = FAMILIES[family]
    model = make_model(comm, config, CODECS["kv"], weights=uneven if weights == "uneven" else weights)
    if model.obstacle(spec) is not None:
        pytest.skip("rotary")
    inputs, mask = ragged(config, batch=5)
    for check in verify(model, inputs, mask, [spec], spread=True):
        assert check.passed and not check.reason, check
    lengths = mask.sum(axis=1)
    layout = model.strategy.planned
    if spec == "single":
        assert not layout.last_rank.any()
    else:
        slices = np.minimum(lengths, comm.size) - 1 if weights is None else None
        if slices is not None:  # a short sequence ends in slice T - 1
            assert layout.last_rank.tolist() == [(int(t) - s) % comm.size for s, t in enumerate(slices)]
        assert layout.last_rank[0] == comm.size - 1
    one = make_model(comm, config, CODECS["kv"])
    one.use(spec)
    one(inputs[:1], mask[:1], spread=True)
    assert one.strategy.planned.places is None  # nothing to spread


@pytest.mark.parametrize("weights", [None, "causal"])
@pytest.mark.parametrize("spec", ["astra", "sp", "sp:kv:int8"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_last_rank_sends_nothing(comm, family, spec, weights):
    """Contributed bytes are the formula's, a port receives what earlier ranks send, and no later rank's message."""
    config = FAMILIES[family]
    model = make_model(comm, config, CODECS["kv"], weights=weights)
    inputs, mask = ragged(config)
    model.use(spec)
    model(inputs, mask)
    own = sum(even(int(t), comm.size) for t in mask.sum(axis=1))
    if weights == "causal":
        own = model.strategy.planned.token_counts
    bits = {"astra": 12, "sp": 32 * 24, "sp:kv:int8": 8 * (2 * config.d_kv + 4)}[spec]
    sent = [config.n_layers * -(-int(n) * bits // 8) for n in own[:-1]] + [0]
    assert model.report["contributed_bytes"] == model.report["formula_bytes"] == sent
    assert model.report["port_bytes"] == [sum(sent[:rank]) for rank in range(comm.size)]
    last_rows = len(inputs) * config.d_model * 4
    assert model.report["other_bytes"] == (last_rows * comm.size if comm.size > 1 else 0)


@pytest.mark.parametrize(("family", "codec"), [("gpt2", "hidden"), ("llama", "kv")])
@pytest.mark.parametrize("weights", [None, "causal"])
def test_a_rank_needs_nothing_of_later_ones(comm, family, codec, weights):
    """The first rank has passed all its blocks before the last one begins."""
    model = make_model(comm, FAMILIES[family], CODECS[codec], weights=weights)
    model.use("astra")
    inputs, mask = ragged(FAMILIES[family])
    model(inputs, mask)
    done = np.zeros(1, np.int32)
    begin, window = model.strategy.steps, MPI.Win.Create(done, comm=comm)

    def steps(i, x):
        if comm.rank == comm.size - 1 and i == 0 and comm.size > 1:
            first = np.zeros(1, np.int32)
            while not first[0]:
                window.Lock(0)
                window.Get(first, 0)
                window.Unlock(0)
        x = yield from begin(i, x)
        if comm.rank == 0 and i == len(model.blocks) - 1:
            window.Lock(0)
            done[0] = 1
            window.Unlock(0)
        return x

    model.strategy.steps = steps
    model(inputs, mask)
    window.Free()


def test_logits_are_of_the_last_token(comm):
    """Of all tokens with `gather`, on rank 0; the answer is the last one's, on every rank."""
    config = FAMILIES["llama"]
    model = make_model(comm, config)
    inputs, mask = ragged(config)
    model.use("sp")
    answer, logits = model(inputs, mask, gather=True)
    assert answer.shape == (4, 53)
    assert (logits is None) == (comm.rank != 0)
    if comm.rank == 0:
        assert logits.shape == (4, 17, 53)
        lengths = mask.sum(axis=1)
        np.testing.assert_allclose(logits[np.arange(4), lengths - 1], answer, atol=1e-5)
        assert not logits[1, lengths[1] :].any()
    first = np.empty_like(answer) if comm.rank else answer.copy()
    comm.Bcast(first)
    assert np.array_equal(first, answer)


def test_empty_batch_and_empty_sequence(comm):
    model = make_model(comm, FAMILIES["llama"])
    model.use("astra")
    assert model(np.zeros((0, 5), np.int64)).shape == (0, 53)
    answer = model(np.ones((2, 5), np.int64), np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]))
    assert np.isfinite(answer).all() and answer[0].any() and not answer[1].any()


def test_one_token_answers_do_not_depend_on_later_ones(comm):
    config = FAMILIES["gpt2"]
    model = make_model(comm, config)
    inputs, _ = random_batch(config, 1, 12, seed=3)
    model.use("sp")
    _, logits = model(inputs, gather=True)
    changed = inputs.copy()
    changed[0, 8:] = (changed[0, 8:] + 1) % 53
    _, others = model(changed, gather=True)
    if comm.rank == 0:
        np.testing.assert_allclose(logits[0, :8], others[0, :8], atol=1e-5)
        assert not np.allclose(logits[0, 8:], others[0, 8:])


def test_counted_keys_only_where_keys_carry_no_position(comm):
    inputs, mask = ragged(FAMILIES["gpt2"])
    for family, counted in (("gpt2", True), ("llama", False)):
        model = make_model(comm, FAMILIES[family], CODECS["one-code"])
        model.use("astra", remote="table")
        on = model(inputs, mask)
        assert model.report["choices"]["counted_keys"] is counted
        assert (model.report["distinct_keys"] > 0) == (comm.size > 1)
        model.use("astra", remote="gemm", counted_keys=False)
        np.testing.assert_allclose(model(inputs, mask), on, atol=2e-5 * np.abs(on).max())


@pytest.mark.parametrize("bad_rank", [0, -1])
def test_one_rank_failing_in_the_middle_fails_all_alike(comm, bad_rank):
    config = FAMILIES["llama"]
    model = make_model(comm, config)
    inputs, mask = ragged(config)
    model.use("astra")
    want = model(inputs, mask)
    output = model.blocks[1].output
    if comm.rank == bad_rank % comm.size:
        model.blocks[1].output = lambda *_: 1 / 0
    with pytest.raises(Exception, match="ZeroDivisionError"):
        model(inputs, mask)
    model.blocks[1].output = output
    np.testing.assert_array_equal(model(inputs, mask), want)


def test_every_strategy_was_tried():
    assert set(STRATEGIES) == {"single", "sp", "tp", "bp", "segment_means", "astra"}
