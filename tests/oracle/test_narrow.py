"""The oracle's products in narrow types, and ranks that compute in them against it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.kernels.integers import integer_product, integers
from astra_mpi.oracle.narrow import WEIGHTS_ONLY, Rounding, bfloat16, eight_bits
from astra_mpi.oracle.reference import oracle
from astra_mpi.oracle.tolerance import FLOAT32, tolerance_of
from astra_mpi.oracle.verify import verify
from astra_mpi.strategies import STRATEGIES
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file, random_weights, vit_config
from helpers.turns import by_turns

FAMILIES = {
    "vit": vit_config(),
    "bert": bert_config(),
    "gpt2": gpt2_config(),
    "llama": llama_config(),
}


def test_bfloat16_is_that_of_pytorch():
    draw = np.random.default_rng(0)
    x = draw.standard_normal(1000).astype(np.float32) * 10.0 ** draw.integers(-30, 30, 1000)
    ties = np.array([0x3F808000, 0x3F818000, 0x7F7F8000, 0x00008000], np.uint32).view(np.float32)
    x = np.concatenate([x, ties, np.array([np.inf, -np.inf, 0.0, -0.0], np.float32)]).astype(np.float32)
    np.testing.assert_array_equal(bfloat16(x), torch.from_numpy(x).bfloat16().double().numpy())
    assert np.isnan(bfloat16(np.array([np.nan]))).all()


def test_states_are_rounded_as_ranks_round_them():
    """Sums of the integers without those of two low digits, which plain products would have; and a draw moves them."""
    x, weight = (np.random.default_rng(0).standard_normal(shape, dtype=np.float32) for shape in ((9, 300), (300, 20)))
    x[:, 3] *= 100
    got = Rounding().of_states(x.astype(np.float64), weight)
    want = integer_product([x], integers(weight), np.empty((9, 20), np.float32))
    assert (
        np.abs(got - want).max() < 2e-6 * np.abs(want).max() < 0.2 * np.abs(x.astype(np.float64) @ weight - want).max()
    )
    for by_chance in (False, True):
        moved = Rounding(draw=np.random.default_rng(1), by_chance=by_chance).of_states(x.astype(np.float64), weight)
        assert 0 < np.abs(moved - got).max() < 1e-3 * np.abs(got).max()


def test_eight_bits_are_steps_of_the_largest_number_of_a_row():
    x = np.random.default_rng(0).standard_normal((5, 33)) * 10.0 ** np.arange(-2, 3)[:, None]
    x[3] = 0
    rounded, step = eight_bits(x), np.abs(x).max(axis=1, keepdims=True) / 127
    assert (np.abs(rounded - x) <= step / 2 * (1 + 1e-12)).all() and not rounded[3].any()
    steps = np.divide(rounded, step, where=step > 0, out=np.zeros_like(x))
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    assert np.abs(steps).max() == pytest.approx(127)


def test_product_rounds_both_factors_or_the_weights():
    draw = np.random.default_rng(1)
    x, w = draw.standard_normal((7, 40)), draw.standard_normal((40, 9))
    np.testing.assert_array_equal(Rounding("float32").product(x, w), x @ w)
    np.testing.assert_array_equal(Rounding(WEIGHTS_ONLY["bfloat16"]).product(x, w), x @ bfloat16(w))
    ints = np.rint(x / np.abs(x).max(axis=1, keepdims=True) * 127) @ np.rint(w / np.abs(w).max(axis=0) * 127)
    scales = np.abs(x).max(axis=1, keepdims=True) * np.abs(w).max(axis=0) / 127**2
    np.testing.assert_allclose(Rounding("int8").product(x, w), ints * scales, rtol=1e-12)
    wide, zeros = np.concatenate([np.tile(x, 7)[:, :256], 1e6 * x], axis=1), np.zeros((256, 9))  # groups of 256 apart
    np.testing.assert_allclose(
        Rounding("int8").product(wide, np.concatenate([zeros, w])), 1e6 * ints * scales, rtol=1e-12
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("compute", ["bfloat16", "int8"])
def test_roundings_by_chance_change_answers_about_as_much_as_rounding(family, compute):
    """By less, and what is accepted would be too little; by much more, and nothing would be found."""
    config = FAMILIES[family]
    weights = random_weights(config)
    inputs, _ = random_batch(config, 1, None if family == "vit" else 17, seed=1)
    owner = np.zeros(15 if family == "vit" else 17, np.int64)

    def hidden(compute, seed=None):
        draw = None if seed is None else np.random.default_rng(seed)
        return oracle(config, weights, inputs[0], owner, 1, compute=compute, draw=draw, by_chance=True).hidden

    rounded = hidden(compute)
    by_rounding = np.abs(rounded - hidden("float32")).mean()
    by_chance = np.mean([np.abs(hidden(compute, seed) - rounded).mean() for seed in range(3)])
    np.testing.assert_array_equal(hidden(compute, 0), hidden(compute, 0))
    np.testing.assert_array_equal(hidden("float32", 0), hidden("float32"))
    assert 1e-5 < by_rounding < by_chance < 4 * by_rounding


def test_tolerance_grows_with_depth_and_step():
    assert tolerance_of("float32", 2) == tolerance_of("float32", 80) == FLOAT32
    for compute in ("bfloat16", "int8"):
        shallow, deep = tolerance_of(compute, 2), tolerance_of(compute, 32)
        grown = (deep.difference - FLOAT32.difference) / (shallow.difference - FLOAT32.difference)
        assert grown == pytest.approx(4) and deep.gap == pytest.approx(deep.difference - 1e-4)
    assert tolerance_of(WEIGHTS_ONLY["int8"], 2) == tolerance_of("int8", 2) > tolerance_of("bfloat16", 2)


@pytest.mark.mpi
@by_turns(("family", "compute"), FAMILIES, ["bfloat16", "int8"])
def test_ranks_equal_the_oracle_of_their_type(comm, family, compute):
    if comm.size > 3:
        pytest.skip("1 to 3 ranks show as much")
    config = FAMILIES[family]
    model = Model(model_file(config), comm, get_backend("numpy", comm, compute=compute))
    inputs, mask = random_batch(config, 3, None if family == "vit" else 17, seed=1, ragged=True)
    for check in verify(model, inputs, mask, list(STRATEGIES)):
        assert check.passed, check
    comm.Barrier()
    assert model.report["choices"]["compute"] == compute


@pytest.mark.mpi
def test_a_wrong_kernel_is_found(comm):
    """On one rank alone: attention that is a tenth too large does not show in any number of bytes."""
    backend = get_backend("numpy", comm, compute="bfloat16")
    if comm.rank == comm.size - 1:

        def too_large(*step, out=None, **options):
            backend.kernels.attend(*step, out=out, **options)
            if out is not None:
                out *= np.float32(1.1)

        kernels = SimpleNamespace(**vars(backend.kernels) | {"attend": too_large})
        wrong = dataclasses.replace(backend, kernels=kernels)
    model = Model(model_file(bert_config()), comm, wrong if comm.rank == comm.size - 1 else backend)
    inputs, mask = random_batch(model.config, 3, 17, seed=1, ragged=True)
    for check in verify(model, inputs, mask, ["sp:x:float32"]):
        assert check.passed == (check.strategy == "products"), check
        assert check.passed or "differs from the oracle" in check.reason, check
    comm.Barrier()


@pytest.mark.mpi
@pytest.mark.parametrize("compute", ["bfloat16", "int8"])
@pytest.mark.parametrize("family, layer", [("llama", "gate"), ("vit", "fc2"), ("gpt2", "head")])
def test_a_wrong_product_is_found(comm, family, layer, compute):
    """One output of one layer of one rank is a twentieth too large, which answers may not show."""
    model = Model(model_file(FAMILIES[family]), comm, get_backend("numpy", comm, compute=compute))
    if model.backend.choices["products"] == "widened":
        pytest.skip("this CPU packs no weights")
    packed = model.family.word_head if layer == "head" else model.blocks[-1].layers[layer]
    if comm.rank == comm.size - 1:
        packed.strips.scale[3] *= np.float32(1.05)
    inputs, mask = random_batch(model.config, 2, None if family == "vit" else 9, seed=1)
    for check in verify(model, inputs, mask, ["single"])[:1]:
        assert check.strategy == "products" and not check.passed and "times what its type may" in check.reason
        assert f"rank {comm.size - 1}" in check.reason and (layer in check.reason or comm.size > 1)
    comm.Barrier()
