"""Weights in narrow types: how they are rounded, and products with them, against PyTorch and float64."""

import numpy as np
import pytest
import torch

from astra_mpi.device.backend import get_backend
from astra_mpi.device.formats import DTYPES, FORMATS, format_of
from astra_mpi.device.formats.blocks import Blocks
from astra_mpi.device.scratch import Scratch
from astra_mpi.device.weights import Made, Narrow, SideBySide, narrowed, part, product, product_transposed
from astra_mpi.engine import Model
from astra_mpi.kernels import cpu, reference
from astra_mpi.oracle.verify import verify
from helpers.fakes import bert_config, model_file, vit_config

NARROW = DTYPES[1:]
BACKENDS = pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def test_rounding_to_bfloat16_is_pytorchs():
    bits = np.random.default_rng(0).integers(0, 1 << 32, (500, 100), np.uint32)
    ties = (bits & 0xFFFF0000) | 0x8000
    for numbers in (bits, ties):
        array = numbers.view(np.float32)
        array = np.where(np.isfinite(array) & (np.abs(array) < 3e38), array, np.float32(1))
        ours = narrowed("x.weight", array, "bfloat16").values
        theirs = torch.from_numpy(array).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("name", "axis"), [("blocks.0.o.weight", 0), ("embed.word", 1)])
def test_int8_is_off_by_half_a_step_of_its_output(name, axis):
    array = normal(40, 30) * np.exp2(np.arange(30, dtype=np.float32) - 15)
    array[:, 3] = array[5] = 0
    narrow = narrowed(name, array, "int8")
    step = np.abs(array).max(axis=axis, keepdims=True) / 127
    assert narrow.scale.shape == step.shape
    assert (np.abs(np.asarray(narrow) - array) <= step * 0.5001).all()
    assert np.abs(narrow.values).max() == 127


def test_int8_rounding_explains_weights_half_way_between_two_steps():
    """Sums of three float32 roundings: the factor, the quotient and the product."""
    rng = np.random.default_rng(0)
    array = normal(400, 300)
    largest = np.abs(array).max(axis=0)
    half_way = ((largest / np.float32(127)) * (rng.integers(-127, 127, array.shape) + 0.5)).astype(np.float32)
    array = np.where(np.abs(array) == largest, array, np.nextafter(half_way, rng.choice([-9, 9], array.shape)))
    off = np.abs(np.asarray(narrowed("x.weight", array, "int8")) - array)
    allowed = format_of("x.weight", array.shape, "int8").rounding("x.weight", array)
    assert (off <= allowed).all() and (off > 0.999 * allowed).any()


def test_what_stays_float32():
    for dtype in NARROW:
        assert isinstance(narrowed("blocks.0.o.bias", normal(5), dtype), np.ndarray)
        assert isinstance(narrowed("embed.position", normal(5, 4), dtype), np.ndarray) == FORMATS[dtype].layers_only


@BACKENDS
@pytest.mark.parametrize("n_rows", [0, 1, 3, 9, 70])
@pytest.mark.parametrize("dtype", NARROW)
def test_products(kernels, dtype, n_rows, monkeypatch):
    monkeypatch.setattr("astra_mpi.device.formats.narrow._TILE", 1000)  # several tiles, the last one narrower
    x, weights = normal(n_rows, 45), [normal(45, 77, seed=1), normal(45, 20, seed=2)]
    narrow = [narrowed("a.weight", weight, dtype) for weight in weights]
    joined = np.concatenate([np.asarray(weight) for weight in narrow], axis=1)
    for both in (SideBySide(*narrow), SideBySide(narrow[0], np.asarray(narrow[1]))):
        np.testing.assert_array_equal(np.asarray(both), joined)
        out = product(x, both, np.empty((n_rows, 97), np.float32), kernels, Scratch())
        np.testing.assert_allclose(out, x.astype(np.float64) @ joined, atol=1e-4)
    word = narrowed("embed.word", normal(77, 45), dtype)
    logits = product_transposed(x, word, kernels, Scratch())
    np.testing.assert_allclose(logits, x.astype(np.float64) @ np.asarray(word, np.float64).T, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["a.weight", "embed.word"])
def test_parts_and_rows(name, dtype):
    weight = narrowed(name, normal(9, 7), dtype)
    whole = np.asarray(weight)
    some = part(weight, slice(2, 5), slice(1, 7))
    np.testing.assert_array_equal(np.asarray(some), whole[2:5, 1:7])
    assert isinstance(some, Narrow) == (dtype != "float32")
    ids = np.array([8, 0, 0, 3])
    np.testing.assert_array_equal(weight[ids], whole[ids])


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("shape", "inputs"), [((7, 5), (1,)), ((5, 7), (0,)), ((7, 3, 2, 2), (1, 2, 3)), ((7, 5), ())])
def test_pytorch_rounds_as_the_format_does(dtype, shape, inputs):
    """The rounding that a format inherits, by way of NumPy, is the one that these formats do in PyTorch."""
    weight, kind = torch.from_numpy(normal(*shape)), FORMATS[dtype]
    if (inputs or not kind.layers_only) and not issubclass(kind, Blocks):
        inherited = Narrow.rounded_tensor.__func__(kind, weight, inputs)
        assert inherited.shape == weight.shape
        torch.testing.assert_close(inherited, kind.rounded_tensor(weight, inputs), rtol=0, atol=1e-7)


def test_weights_made_on_demand():
    made = []
    weights = Made(["a", "b"], lambda name: made.append(name) or np.zeros(1))
    assert (list(weights), len(weights), "c" in weights, made) == (["a", "b"], 2, False, [])
    assert weights["b"].shape == (1,) and made == ["b"]


@pytest.mark.mpi
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("config", [vit_config(), bert_config(pooling="pooler", has_pooler=True)], ids=["vit", "bert"])
def test_strategies_equal_oracle_on_the_values_as_stored(comm, config, dtype):
    from astra_mpi.convert.synthetic import random_batch

    model = Model(model_file(config, dtype=dtype), comm, get_backend("numpy", comm))
    inputs, mask = random_batch(config, 3, None if config.family == "vit" else 11, seed=1, ragged=True)
    for check in verify(model, inputs, mask, ["single", "sp", "tp", "segment_means:3", "astra"]):
        assert check.passed and not check.reason, check
    comm.Barrier()
