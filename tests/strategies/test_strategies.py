"""The rivals on P real ranks against the serial oracle, and their bytes against their formulas."""

from types import SimpleNamespace

import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import AstraError
from astra_mpi.oracle.verify import verify
from astra_mpi.partition import even
from astra_mpi.strategies import STRATEGIES, Parts, parse
from helpers.fakes import IMAGE_PARTS, bert_config, model_file, vit_config
from helpers.turns import by_turns

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


@by_turns(("family", "spec"), FAMILIES, ["tp", "segment_means:1", "segment_means:3", "segment_means:8"])
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


def test_image_encoders_equal_the_oracle(comm):
    """Several class tokens, registers and none, under every strategy; every pooling under some."""
    if comm.size > 3:
        pytest.skip("1 to 3 ranks show as much")
    for name, changes in IMAGE_PARTS.items():
        config = vit_config(**changes)
        inputs, mask = random_batch(config, 2, seed=1)
        for codec in (CodecConfig(site="normed", stages=1, codebook_size=9), CodecConfig(site="kv", stages=2)):
            model = Model(model_file(config, codec), comm, get_backend("numpy", comm))
            every = name in ("registers", "distilled", "probe") and codec.site == "normed"
            for spec in STRATEGIES if every else ("tp", "astra:inputs"):
                for check in checks_of(comm, model, inputs, mask, spec):
                    assert check.passed, (name, check)
                    assert not check.reason or check.strategy.startswith("bp"), (name, check)


SP_ROUNDED = ["sp:float16", "sp:int8", "sp:kv:float16", "sp:kv:int8"]


@by_turns(("family", "spec"), FAMILIES, SP_ROUNDED)
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


def lengths_and_cuts(comm, inputs, mask):
    """Content tokens per sequence, and (B, P) of them on each rank."""
    lengths = mask.sum(axis=1) if mask is not None else [15] * len(inputs)
    return [int(t) for t in lengths], np.array([even(int(t), comm.size) for t in lengths])


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_tp_bytes(comm, family):
    """2 L all-reduces of T * D * 4; class tokens are counted apart."""
    model, inputs, mask = make_model(comm, family)
    model.use("tp")
    model(inputs, mask)
    lengths, _ = lengths_and_cuts(comm, inputs, mask)
    want = 2 * 2 * sum(lengths) * 24 * 4 if comm.size > 1 else 0
    assert model.report["contributed_bytes"] == model.report["formula_bytes"] == [want] * comm.size
    classes = 2 * 2 * len(inputs) * 24 * 4 if family == "vit" else 0
    pooled = len(inputs) * 24 * 4
    assert model.report["other_bytes"] == ((classes + pooled) * comm.size if comm.size > 1 else 0)


@pytest.mark.parametrize(
    ("spec", "groups", "split"), [("bp", 1, 0), ("bp:2", 2, 0), ("bp:sp", 1, 1), ("bp:sp:2", 2, 1)]
)
@pytest.mark.parametrize("family", ["vit", "bert-heads"])
def test_bp_bytes(comm, family, spec, groups, split):
    """Nb times T * (D / P) * 4, and n_r * D * 4 with `sp`."""
    model, inputs, mask = make_model(comm, family)
    if model.obstacle(spec):
        pytest.skip("cannot be used here")
    model.use(spec)
    model(inputs, mask)
    lengths, cuts = lengths_and_cuts(comm, inputs, mask)
    d = model.config.d_model
    want = [groups * (sum(lengths) * d // comm.size * 4 + split * int(n) * d * 4) for n in cuts.sum(axis=0)]
    want = want if comm.size > 1 else [0]
    assert model.report["contributed_bytes"] == model.report["formula_bytes"] == want
    assert model.report["note"].startswith("latency only")
    assert model.report["strategy"] == spec
    choices = model.report["choices"]
    assert (choices["form"], choices["groups"]) == ("sp" if split else "ag", groups)


@pytest.mark.parametrize("ratio", [1, 3, 50])
def test_segment_means_bytes(comm, ratio):
    """L times ceil(n_r / ratio) * D * 4, sequence by sequence."""
    model, inputs, mask = make_model(comm, "bert")
    model.use(f"segment_means:{ratio}")
    model(inputs, mask)
    _, cuts = lengths_and_cuts(comm, inputs, mask)
    want = [2 * int(n) * 24 * 4 for n in np.ceil(cuts / ratio).sum(axis=0)] if comm.size > 1 else [0]
    assert model.report["contributed_bytes"] == model.report["formula_bytes"] == want


def test_segment_means_are_approximate_and_exact_with_ratio_1(comm):
    model, inputs, mask = make_model(comm, "bert")
    model.use("single")
    exact = model(inputs, mask)
    errors = []
    for ratio in (1, 4):
        model.use(f"segment_means:{ratio}")
        errors.append(np.abs(model(inputs, mask) - exact).max() / np.abs(exact).max())
    assert errors[0] < 1e-5
    assert (errors[1] > 1e-3) == (comm.size > 1)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_tp_with_shared_key_and_value_heads(comm, n_kv_heads):
    """Grouped queries: a rank's query heads are those that read its key and value heads."""
    model, inputs, mask = make_gqa(comm, n_kv_heads)
    model.use("single")
    exact = model(inputs, mask)
    model.use("tp")
    np.testing.assert_allclose(model(inputs, mask), exact, atol=1e-5 * np.abs(exact).max())
    assert (model.strategy.shares[0].n_heads == 0) == (comm.rank >= n_kv_heads)


def make_gqa(comm, n_kv_heads):
    config = bert_config(d_model=32, n_heads=8, n_kv_heads=n_kv_heads)
    model = Model(model_file(config), comm, get_backend("numpy", comm))
    return (model, *random_batch(config, 3, 9, seed=2, ragged=True))


@pytest.mark.parametrize("spec", ["tp", "bp:sp", "segment_means:2", "sp:int8"])
def test_uneven_speeds(comm, spec):
    weights = [3.0] + [1.0] * (comm.size - 2) + [0.0] if comm.size > 1 else [1.0]
    model, inputs, mask = make_model(comm, "bert-heads", weights=weights)
    if not model.obstacle(spec):
        for check in checks_of(comm, model, inputs, mask, spec):
            assert check.passed, check
    if spec == "tp" and comm.size > 1:
        assert (model.strategy.shares[0].n_heads == 0) == (comm.rank == comm.size - 1)


@by_turns(
    ("bad_rank", "bad_block", "spec"), [0, 1], [0, 3], ["tp", "bp", "bp:sp", "bp:sp:2", "segment_means:2", "sp:int8"]
)
def test_a_failing_rank_ends_all_with_one_message(comm, spec, bad_block, bad_rank):
    model, inputs, mask = make_model(comm, "bert-heads")
    if model.obstacle(spec):
        pytest.skip("cannot be used here")
    model.use(spec)
    want = model(inputs, mask)
    block, laps = model.strategy.steps, model.exchange.laps
    if comm.rank == min(bad_rank, comm.size - 1):
        mark = laps.mark

        def fail(phase):
            if phase == "attention":
                raise FloatingPointError("of one rank")
            mark(phase)

        def failing(i, x):
            laps.mark = fail if i == bad_block else mark
            return block(i, x)

        model.strategy.steps = failing
    with pytest.raises(AstraError, match="FloatingPointError: of one rank") as caught:
        model(inputs, mask)
    assert caught.value.collective
    model.strategy.steps = block
    vars(laps).pop("mark", None)
    np.testing.assert_array_equal(model(inputs, mask), want)


@pytest.mark.parametrize("spec", ["tp", "bp:sp", "segment_means:2"])
def test_a_rank_with_other_weights_is_found(comm, spec):
    model, inputs, mask = make_model(comm, "bert-heads")
    if model.obstacle(spec):
        pytest.skip("cannot be used here")
    if comm.rank == comm.size - 1:
        for block in model.blocks:
            block.w["o.bias"] = -block.w["o.bias"]
    for check in checks_of(comm, model, inputs, mask, spec):
        assert not check.passed
        assert "differs from the oracle" in check.reason


@pytest.mark.parametrize("size", [2, 3])
def test_causal_segment_means_are_of_earlier_slices(comm, size):
    lengths = np.array([7, 1, 4])
    for rank in range(size):
        exchange = SimpleNamespace(size=size, rank=rank, laps=None)
        config = bert_config()
        parts = Parts(config, [], exchange, None)
        strategy = STRATEGIES["segment_means"](parts, parse("segment_means:2"))
        layout = strategy.layout(lengths, 0, True, None)
        strategy.begin(layout)
        runs = [-(-layout.counts[s, r] // 2) for s in range(3) for r in range(rank)]
        assert strategy.means.far_offsets[-1] == len(strategy.bias) == sum(runs)
        counted = np.exp(strategy.bias).sum()
        assert counted == pytest.approx(layout.counts[:, :rank].sum())


def test_float16_overflow_on_one_rank_fails_all(comm):
    model, inputs, mask = make_model(comm, "vit")
    model.use("sp:float16")
    model(inputs, mask)
    if comm.rank == comm.size - 1:
        for block in model.blocks:
            block.w["fc2.bias"] = block.w["fc2.bias"] + np.float32(1e5)
            vars(block).pop("_rest", None)  # what kernels were told before
    if comm.size == 1:
        model(inputs, mask)  # nothing travels
    else:
        with pytest.raises(AstraError, match="beyond float16") as caught:
            model(inputs, mask)
        assert caught.value.collective
