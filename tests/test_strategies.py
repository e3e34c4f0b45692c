"""The rivals on P real ranks against the serial oracle, and their bytes against their formulas."""

import numpy as np
import pytest

from astra_mpi.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import AstraError
from astra_mpi.partition import even
from astra_mpi.synthetic import random_batch
from astra_mpi.verify import verify
from fakes import bert_config, model_file, vit_config

pytestmark = pytest.mark.mpi

FAMILIES = {
    "vit": (vit_config(), None),
    "vit-odd": (vit_config(grid=(1, 7), qkv_bias=False, n_classes=0, channels=1, d_ff=37), None),
    "vit-short": (vit_config(grid=(1, 1), n_layers=3), None),
    "bert": (bert_config(), 17),
    "bert-heads": (bert_config(d_model=32, n_heads=8, n_kv_heads=8, n_layers=5, d_ff=5), 9),
    "bert-cls": (bert_config(pooling="cls", n_layers=3), 8),
}


def make_model(comm, family, **changes):
    config, n_tokens = FAMILIES[family]
    model = Model(model_file(config), comm, get_backend("numpy", comm), **changes)
    inputs, mask = random_batch(config, 4, n_tokens, seed=1, ragged=True)
    return model, inputs, mask


def checks_of(comm, model, inputs, mask, spec):
    """The checks on rank 0; after them all ranks go on."""
    checks = verify(model, inputs, mask, [spec])
    comm.Barrier()
    return checks


def assert_verified(comm, model, inputs, mask, spec):
    for check in checks_of(comm, model, inputs, mask, spec):
        assert check.passed and not check.reason, check


@pytest.mark.parametrize("spec", ["tp", "segment_means:1", "segment_means:3", "segment_means:8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_oracle(comm, family, spec):
    assert_verified(comm, *make_model(comm, family), spec)


@pytest.mark.parametrize("spec", ["bp", "bp:sp", "bp:2", "bp:sp:2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoupled_blocks_equal_their_oracle(comm, family, spec):
    model, inputs, mask = make_model(comm, family)
    config, groups = model.config, 2 if spec.endswith("2") else 1
    fits = config.n_heads % comm.size == 0 and config.n_layers >= 2 * groups
    assert (model.obstacle(spec) is None) == fits
    for check in checks_of(comm, model, inputs, mask, spec):
        assert check.passed, check
        assert check.reason.startswith("skipped: ") == (not fits)
        assert not fits or check.note.startswith("latency only")


SP_ROUNDED = ["sp:float16", "sp:int8", "sp:kv:float16", "sp:kv:int8"]


@pytest.mark.parametrize("spec", SP_ROUNDED)
@pytest.mark.parametrize("family", FAMILIES)
def test_sp_rounded_equals_oracle(comm, family, spec):
    assert_verified(comm, *make_model(comm, family), spec)


@pytest.mark.parametrize("spec", SP_ROUNDED)
def test_rounding_matters_and_stays_small(comm, spec):
    """Not exact, or the tests above would not see the wire; near exact, or it would be no rival."""
    model, inputs, mask = make_model(comm, "bert")
    model.use("single")
    exact = model(inputs, mask)
    model.use(spec)
    error = np.abs(model(inputs, mask) - exact).max() / np.abs(exact).max()
    assert error < (0.1 if "int8" in spec else 5e-3)
    assert (error > 1e-5) == (comm.size > 1)


@pytest.mark.parametrize("spec", ["sp:int8", "sp:kv:float16"])
def test_a_rank_that_rounds_otherwise_is_found(comm, spec, monkeypatch):
    model, inputs, mask = make_model(comm, "bert")
    if comm.rank == comm.size - 1:
        monkeypatch.setattr(
            "astra_mpi.strategies.sp.pack_rows", lambda x, wire, pack=_pack: pack(x * np.float32(1.004), wire)
        )
    (check,) = checks_of(comm, model, inputs, mask, spec) or [None]
    if comm.rank == 0:
        assert check.passed == (comm.size == 1)
        assert comm.size == 1 or "rounded number" in check.reason


def _pack(x, wire):
    from astra_mpi.strategies.wire import pack_rows

    return pack_rows(x, wire)


@pytest.mark.parametrize(
    ("spec", "row"),
    [("sp", 96), ("sp:float16", 48), ("sp:int8", 28), ("sp:kv", 192), ("sp:kv:float16", 96), ("sp:kv:int8", 52)],
)
def test_sp_bytes(comm, spec, row):
    """n_r * D * 4, n_r * D * 2, n_r * (D + 4), and the same with 2 D_kv; D = D_kv = 24."""
    model, inputs, mask = make_model(comm, "bert")
    model.use(spec)
    model(inputs, mask)
    n_r = sum(even(int(t), comm.size) for t in mask.sum(axis=1))
    want = [2 * int(n) * row if comm.size > 1 else 0 for n in n_r]
    assert model.report["contributed_bytes"] == model.report["formula_bytes"] == want
    assert model.report["bits_per_token_per_block"] == 8 * row
    assert model.report["strategy"] == spec


def test_float16_overflow_on_one_rank_fails_all(comm):
    model, inputs, mask = make_model(comm, "vit")
    model.use("sp:float16")
    model(inputs, mask)
    if comm.rank == comm.size - 1:
        for block in model.blocks:
            block.w["fc2.bias"] = block.w["fc2.bias"] + np.float32(1e5)
    if comm.size == 1:
        model(inputs, mask)  # nothing travels
    else:
        with pytest.raises(AstraError, match="beyond float16") as caught:
            model(inputs, mask)
        assert caught.value.collective
