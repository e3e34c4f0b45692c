"""Weights in GGML's blocks: its values to the bit, in files, cut, multiplied, and under every strategy."""

import dataclasses
import shutil

import gguf
import h5py
import numpy as np
import pytest
import torch

from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.device.formats import FORMATS
from astra_mpi.device.formats.blocks import Blocks
from astra_mpi.device.scratch import Scratch
from astra_mpi.device.weights import Narrow, SideBySide, mapped_file, narrowed, part, product, product_transposed
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import read_model, write_model
from astra_mpi.kernels import cpu, reference
from astra_mpi.kernels.cpu import int8
from astra_mpi.oracle.verify import verify
from helpers.fakes import bert_config, llama_config, model_file, vit_config

KINDS = pytest.mark.parametrize("dtype", [name for name, kind in FORMATS.items() if issubclass(kind, Blocks)])
NAMES = pytest.mark.parametrize("name", ["a.weight", "embed.word"])
#: attention's output takes 48 inputs, which is no multiple of 32
CONFIG = bert_config(d_model=96, n_heads=2, n_kv_heads=2, d_ff=80, pooling="mean")


def matrix(name, n, k, seed=0):
    """n outputs of k inputs, with a block of zeros, and one of numbers that float16 hardly has."""
    outputs = np.random.default_rng([seed, n, k]).standard_normal((n, k)).astype(np.float32)
    outputs[2, :32] = 0
    outputs[3, 32:64] *= 2.0**-22
    outputs[4, 32:64] = 1.5
    return outputs if name == "embed.word" else np.ascontiguousarray(outputs.T)


@KINDS
@NAMES
@pytest.mark.parametrize("n", [5, 32, 50])
def test_values_are_those_of_gguf(dtype, name, n):
    array, kind = matrix(name, n, 128), getattr(gguf.GGMLQuantizationType, dtype.upper())
    outputs = array if name == "embed.word" else array.T
    want = gguf.dequantize(gguf.quantize(np.ascontiguousarray(outputs), kind), kind)
    want = want if name == "embed.word" else want.T
    blocks = narrowed(name, array, dtype)
    assert (np.asarray(blocks) == want).all() and blocks.shape == array.shape
    assert blocks.nbytes == FORMATS[dtype].bits * -(-n // 32) * 32 * 128 / 8
    assert (np.abs(np.asarray(blocks) - array) <= FORMATS[dtype].rounding(name, array)).all()
    for rows in (slice(3), slice(1, 5, 2), slice(2, 2), np.array([4, 0, 0]), np.array([[1], [3]]), 2):
        assert (blocks[rows] == want[rows]).all() and blocks[rows].shape == want[rows].shape


def test_a_file_read_and_written_again_keeps_the_type_of_every_weight(tmp_path):
    """As `calibrate` does."""
    config, dtypes = llama_config(d_model=64, n_heads=4, n_kv_heads=2, d_ff=96), ("q4_1", "q8_0", "float16", "float32")
    weights = {
        name: narrowed(name, np.asarray(weight), dtypes[i % len(dtypes)])
        for i, (name, weight) in enumerate(model_file(config).weights.items())
    }
    mixed = dataclasses.replace(model_file(config), weights=weights, keeps=True)
    before = write_model(tmp_path / "mixed.h5", mixed)
    assert write_model(tmp_path / "again.h5", read_model(tmp_path / "mixed.h5")) == before
    assert write_model(tmp_path / "q4_1.h5", dataclasses.replace(mixed, keeps=False, stored_dtype="q4_1")) != before


@KINDS
@NAMES
def test_parts(dtype, name):
    blocks = narrowed(name, matrix(name, 70, 128), dtype)
    whole = np.asarray(blocks)
    for outputs, inputs in ((slice(17, 60), slice(32, 96)), (slice(None), slice(64, None)), (slice(3), slice(10, 70))):
        cut = (outputs, inputs) if name == "embed.word" else (inputs, outputs)
        some = part(blocks, *cut)
        assert (np.asarray(some) == whole[cut]).all()
        assert isinstance(some, Blocks) == (inputs.start % 32 == 0)


def test_what_blocks_do_not_hold():
    kinds = {
        (48, 40): ("a.weight", "float16"),
        (30, 48): ("embed.word", "float16"),
        (40, 96): ("embed.position", None),
        (32, 7): ("b.weight", "q4_0"),
    }
    for shape, (name, dtype) in kinds.items():
        weight = narrowed(name, np.ones(shape, np.float32), "q4_0")
        assert (weight.dtype if isinstance(weight, Narrow) else None) == dtype


@KINDS
@pytest.mark.parametrize(
    ("shape", "inputs"), [((7, 64), (1,)), ((64, 7), (0,)), ((7, 2, 4, 4), (1, 2, 3)), ((7, 5), (1,))]
)
def test_pytorch_rounds_alike(dtype, shape, inputs):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    outputs = array.T if inputs == (0,) else array.reshape(len(array), -1)
    layer = narrowed("a.weight", np.ascontiguousarray(outputs.T), dtype)
    found = FORMATS[dtype].rounded_tensor(torch.from_numpy(array), inputs).numpy()
    assert layer.dtype == (dtype if shape != (7, 5) else "float16")
    np.testing.assert_array_equal(found.T if inputs == (0,) else found.reshape(len(found), -1), np.asarray(layer).T)


@KINDS
@pytest.mark.parametrize("n_rows", [0, 1, 6, 70])
def test_products(dtype, n_rows, monkeypatch):
    monkeypatch.setattr("astra_mpi.device.formats.narrow._TILE", 3000)  # several tiles, the last one narrower
    x = np.random.default_rng(1).standard_normal((n_rows, 96)).astype(np.float32)
    layers = [narrowed("a.weight", matrix("a.weight", n, 96, seed=n), dtype) for n in (77, 20)]
    joined = np.concatenate([np.asarray(layer) for layer in layers], axis=1).astype(np.float64)
    word = narrowed("embed.word", matrix("embed.word", 77, 96), dtype)
    turned = np.random.default_rng(2).standard_normal((n_rows, 77)).astype(np.float32)
    for kernels in (reference, cpu, int8):
        # rows in 8 bits are off by half a step of a block
        step = np.abs(x.reshape(n_rows, 3, 32)).max(axis=2).repeat(32, axis=1) / 254 if kernels is int8 else 0 * x
        wide = Scratch()
        out = product(x, SideBySide(*layers), np.empty((n_rows, 97), np.float32), kernels, wide)
        assert (np.abs(out - x @ joined) <= 1e-4 + step @ np.abs(joined)).all()
        logits = product_transposed(x, word, kernels, wide)
        assert (np.abs(logits - x @ np.asarray(word).T) <= 1e-4 + step @ np.abs(np.asarray(word)).T).all()
        # the other way round, where blocks lie across
        np.testing.assert_allclose(
            product(turned, word, np.empty((n_rows, 96), np.float32), kernels, wide),
            turned @ np.asarray(word),
            atol=1e-4,
        )
        one = narrowed("a.weight", matrix("a.weight", 77, 96), dtype)
        np.testing.assert_allclose(
            product_transposed(turned, one, kernels, wide), turned @ np.asarray(one).T, atol=1e-4
        )


@KINDS
def test_model_files(tmp_path, dtype):
    model = model_file(CONFIG)
    digest = write_model(tmp_path / "m.h5", dataclasses.replace(model, stored_dtype=dtype))
    back = read_model(tmp_path / "m.h5")
    assert (back.stored_dtype, back.digest) == (dtype, digest)
    for name, array in model.weights.items():
        np.testing.assert_array_equal(back.weights[name], np.asarray(narrowed(name, array, dtype)))
    assert mapped_file(back.weights["embed.word"]) is not None
    kept = {name: getattr(weight, "dtype", None) for name, weight in back.weights.items()}
    assert (kept["embed.word"], kept["blocks.0.q.weight"], kept["blocks.0.fc2.weight"]) == (dtype, dtype, "float16")
    # the same numbers have the same digest, however they are stored; what is narrow may stay what it is
    again = dataclasses.replace(back, stored_dtype="float32")
    assert write_model(tmp_path / "wide.h5", again) == digest
    assert write_model(tmp_path / "kept.h5", dataclasses.replace(again, keeps=True)) == digest
    assert read_model(tmp_path / "kept.h5").stored_dtype == dtype


def edited(edit):
    def change(file):
        item = file["weights/blocks.0.q.weight"]
        values, attributes = item[...], dict(item.attrs)
        del file["weights/blocks.0.q.weight"]
        values, attributes = edit(values, attributes)
        file["weights/blocks.0.q.weight"] = values
        file["weights/blocks.0.q.weight"].attrs.update(attributes)

    return change


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v, a: (v[:, :-1], a), r"blocks.0.q.weight has shape \(6, 2, 320\), its config says \(6, 3, 320\)"),
        (lambda v, a: (v[..., :288], a), r"has shape \(6, 3, 288\), its config says \(6, 3, 320\)"),
        (
            lambda v, a: (v, {"sha256": a["sha256"]}),
            "is uint8 without dtype = q8_0 or q4_0 or q4_1; make the file anew",
        ),
        (lambda v, a: (v, a | {"dtype": "q4_0"}), r"its config says \(6, 3, 288\)"),
        (lambda v, a: (v ^ 1, a), "is damaged or edited .weight blocks.0.q.weight differ"),
        (lambda v, a: (np.full_like(v, 255), a), "weight blocks.0.q.weight has NaN or infinite values"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, edit, message):
    write_model(tmp_path / "m.h5", dataclasses.replace(model_file(CONFIG), stored_dtype="q4_1"))
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        edited(edit)(file)
    with pytest.raises(InputError, match=message):
        read_model(tmp_path / "m.h5")


def test_truncated_and_infinite(tmp_path):
    model = dataclasses.replace(model_file(CONFIG), stored_dtype="q8_0")
    write_model(tmp_path / "m.h5", model)
    shutil.copy(tmp_path / "m.h5", tmp_path / "short.h5")
    with open(tmp_path / "short.h5", "r+b") as file:
        file.truncate((tmp_path / "m.h5").stat().st_size - 5000)
    with pytest.raises(InputError, match=r"short\.h5"):
        read_model(tmp_path / "short.h5")
    large = dict(model.weights) | {"blocks.0.q.weight": np.full((96, 96), 1e7, np.float32)}
    with pytest.raises(InputError, match=r"blocks\.0\.q\.weight has values too large for q8_0; use --dtype float32"):
        write_model(tmp_path / "large.h5", dataclasses.replace(model, weights=large))
    damaged = model.weights | {"blocks.0.q.weight": narrowed("a.weight", large["blocks.0.q.weight"], "q8_0")}
    with pytest.raises(InputError, match=r"weight blocks\.0\.q\.weight has NaN or infinite values; repair the source"):
        write_model(tmp_path / "inf.h5", dataclasses.replace(model, weights=damaged, keeps=True))


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (CONFIG, "q8_0"),
        (llama_config(d_model=96, d_ff=64), "q4_1"),
        (vit_config(d_model=64, n_heads=4, n_kv_heads=4, d_ff=96), "q4_0"),
    ],
    ids=["bert", "llama", "vit"],
)
@pytest.mark.parametrize("compute", ["float32", "int8"])
def test_strategies_equal_oracle_on_the_values_as_stored(comm, config, dtype, compute):
    model = Model(model_file(config, dtype=dtype), comm, get_backend("numpy", comm, compute=compute))
    inputs, mask = random_batch(config, 3, None if config.family == "vit" else 11, seed=1, ragged=True)
    for check in verify(model, inputs, mask, ["single", "sp", "tp", "astra"]):
        assert check.passed and not check.reason, check
    comm.Barrier()
