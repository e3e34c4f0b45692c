"""Codes of what a prediction misses: ranks equal the oracle and hold the same states bit by bit, gaps or not."""

import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.kernels.cpu._integer_words import packed_digits, packed_pairs
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.oracle.verify import verify
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file, vit_config

pytestmark = pytest.mark.mpi

FAMILIES = {
    "vit": (vit_config(n_layers=3), None),
    "bert": (bert_config(n_layers=4), 17),
    "bert-cls": (bert_config(pooling="cls", n_layers=3), 9),
    "gpt2": (gpt2_config(n_layers=3), 13),
    "llama": (llama_config(n_layers=4), 19),
}
CODECS = {
    "residual": CodecConfig(site="normed", stages=3, codebook_size=16, predict="linear"),
    "one-code": CodecConfig(site="normed", stages=1, codebook_size=9, predict="linear", inputs=1),
    "grouped": CodecConfig(site="normed", kind="grouped", groups=5, codebook_size=10, predict="linear"),
    "sinks": CodecConfig(site="normed", stages=2, codebook_size=16, predict="linear", sinks=2, inputs=3),
    "subspace": CodecConfig(site="normed", stages=2, codebook_size=16, encoder="subspace", predict="linear"),
}


def make_model(comm, config, codec="residual", weights=None, compute="float32", **conditions):
    conditions = parse_conditions(comm.size, **conditions)
    backend = get_backend("numpy", comm, compute=compute)
    return Model(model_file(config, CODECS[codec]), comm, backend, weights, conditions)


def assert_verified(comm, model, inputs, mask, **options):
    checks = verify(model, inputs, mask, ["astra"], **options)
    assert all(check.passed and "skipped" not in check.reason for check in checks), checks
    comm.Barrier()


def assert_same_states(model):
    """What every rank holds of a far token in the last block is what its owner holds."""
    strategy = model.strategy
    states, planned = strategy.states, strategy.planned
    own = np.zeros((planned.token_counts[planned.rank], states.far.shape[1]), np.float32)
    own[slice(None) if strategy.reach.own is None or not len(states.own) else strategy.reach.own] = (
        states.own if len(states.own) else 0
    )
    every = strategy.all_rows(own)
    np.testing.assert_array_equal(states.far, every[planned.far_index])


#: every family, and every kind of codes under masks that look back and that do not
CASES = [(family, "residual") for family in FAMILIES]
CASES += [(family, codec) for family in ("bert-cls", "llama") for codec in list(CODECS)[1:]]


@pytest.mark.parametrize(("family", "codec"), CASES)
def test_equals_the_oracle(comm, family, codec):
    """Uneven cuts, ragged lengths, class tokens; every rank's states are the same."""
    config, n_tokens = FAMILIES[family]
    if codec == "sinks" and family not in ("gpt2", "llama"):
        pytest.skip("first tokens of encoders see all others")
    uneven = [1.0 + 2 * (r % 3) for r in range(comm.size)]
    model = make_model(comm, config, codec, uneven if codec == "residual" else None)
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    if mask is not None and codec == "subspace":  # padding before the texts
        inputs, mask = inputs[:, ::-1].copy(), mask[:, ::-1].copy()
    assert_verified(comm, model, inputs, mask)
    model.use("astra")
    model(inputs, mask)
    sent = sum(model.report["contributed_bytes"])
    assert sent == sum(model.report["formula_bytes"]) and model.report["choices"]["first"] == "inputs"
    assert comm.size == 1 or sent % (config.n_layers - 1) == 0 < sent
    if comm.size > 1:
        assert_same_states(model)
        assert_verified(comm, make_model(comm, config, codec), inputs, mask, spread=True)


@pytest.mark.parametrize("loss", ["40%", "100%"])
@pytest.mark.parametrize("family", ["bert-cls", "llama"])
def test_what_is_lost_goes_on_as_predicted(comm, family, loss):
    """Every receiver has states of its own, as the oracle has; later codes still move them."""
    config, n_tokens = FAMILIES[family]
    model = make_model(comm, config, network=f"real,loss={loss}", seed=3)
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    assert_verified(comm, model, inputs, mask)
    if comm.size > 1:
        found = model.report["missing"]
        assert found["treatment"] == "predict" and found["lost"] > 0
        assert found["lost"] < found["messages"] or loss == "100%"


def test_predictors_are_packed_before_the_first_pass(comm):
    model = make_model(comm, FAMILIES["llama"][0])
    model.use("astra")
    packed = [packing for packing in (packed_digits, packed_pairs) if packing.of]
    assert packed
    before = [set(packing.of) for packing in packed]
    model(np.ones((1, 17), int))
    assert [set(packing.of) for packing in packed] == before


def test_treatments_are_of_one_kind_of_codes(comm):
    for treatment, codec in (("drop", "residual"), ("mean", "residual"), ("predict", None)):
        config = FAMILIES["llama"][0]
        file = model_file(config, CODECS[codec] if codec else None)
        backend = get_backend("numpy", comm)
        model = Model(file, comm, backend, conditions=parse_conditions(comm.size, missing=treatment))
        with pytest.raises(InputError, match=rf"missing = '{treatment}'.*use {'predict' if codec else 'drop or mean'}"):
            model.use("astra")


@pytest.mark.parametrize("compute", ["bfloat16", "int8"])
def test_narrow_products(comm, compute):
    """States are float32 whatever the products are, and so are the same everywhere."""
    config, n_tokens = FAMILIES["llama"]
    model = make_model(comm, config, compute=compute)
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    assert_verified(comm, model, inputs, mask)
    if comm.size > 1:
        model.use("astra")
        model(inputs, mask)
        assert_same_states(model)


def test_windows_leave_nothing_out_of_messages(comm):
    config = llama_config(n_layers=4, windows=(0, 4, 0, 4))
    model = make_model(comm, config)
    inputs, mask = random_batch(config, 2, 19, seed=1, ragged=True)
    assert_verified(comm, model, inputs, mask)
    others = make_model(comm, llama_config(n_layers=4))
    for each in (model, others):
        each.use("astra")
        each(inputs, mask)
    assert model.report["contributed_bytes"] == others.report["contributed_bytes"]


def test_far_tokens_are_not_kept_as_codes(comm):
    model = make_model(comm, FAMILIES["llama"][0])
    model.use("astra")
    with pytest.raises(InputError, match=r"far = 'codes': .*; use far = 'keys'"):
        model.generate(np.ones((1, 5), int), max_new_tokens=3, far="codes")
