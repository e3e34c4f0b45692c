"""GGUF files in blocks: what stays as it is in the model file, and what rounding the other types costs."""

import importlib.util

import gguf
import numpy as np
import pytest

from astra_mpi.convert.gguf import convert_gguf
from astra_mpi.convert.gguf.architectures import ARCHITECTURES
from astra_mpi.convert.gguf.blocks import KEPT, ROUNDED, read_blocks
from astra_mpi.convert.gguf.tensors import PLAIN, TYPES
from astra_mpi.device.formats import FORMATS
from astra_mpi.device.formats.blocks import Blocks
from astra_mpi.files.modelfile import read_model
from astra_mpi.files.modelfile import write_model as write_model_file
from astra_mpi.models import FAMILIES
from helpers.gguf_files import SIZES, random_model, write_model

SUPPORTED = [arch for arch, kind in ARCHITECTURES.items() if kind.model_type in FAMILIES]


def test_every_type_has_a_format():
    assert set(KEPT) == set(TYPES) and set(KEPT.values()) <= set(FORMATS)


@pytest.mark.parametrize("name", sorted(set(TYPES) - set(PLAIN)))
def test_blocks_keep_their_numbers(name):
    """Exactly, or off by the rounding of factors (Q4_K), or by half a step of 8 bits."""
    kind, rng = gguf.GGMLQuantizationType[name], np.random.default_rng(0)
    block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 60, (7, 512 // block * n_bytes)).astype(np.uint8)  # factors stay finite
    want = gguf.dequantize(raw, kind)
    blocks = FORMATS[KEPT[name]].empty(7, 512, by_rows=True)
    blocks.fill(0, read_blocks(name, raw))
    off = np.abs(np.asarray(blocks) - want)
    largest = np.abs(want).reshape(7, -1, 32).max(axis=2).repeat(32, axis=1)
    if name not in ROUNDED:
        assert (off == 0).all()
    elif name == "Q4_K":
        # a number is 15 factors and a least weight, which may be far larger than it is
        least = np.abs(read_blocks(name, raw).least.astype(np.float32)).repeat(32, axis=1)
        assert (off <= 2.0**-11 * (np.abs(want) + 2 * least) + 2.0**-20).all() and off.max() > 0
    else:
        assert (off <= largest * (1 / 254 + 2.0**-10) + 2.0**-17).all()


@pytest.mark.parametrize("arch", SUPPORTED)
def test_matrices_of_every_architecture_stay_in_blocks(tmp_path, arch):
    """Rows that the file has in another order, in one with others, or times a factor are moved as they are."""
    write_model(tmp_path / "m.gguf", random_model(arch), arch, "Q4_1")
    kept, wide = convert_gguf(tmp_path / "m.gguf")[0], convert_gguf(tmp_path / "m.gguf", "float32")[0]
    assert kept.stored_dtype == "q4_1"
    for name, weight in wide.weights.items():
        found = kept.weights[name]
        assert isinstance(found, Blocks) == (weight.ndim == 2 and name not in ("embed.position", "embed.type")), name
        # Granite's and Gemma's factors are rounded to float16 once more
        scaled = arch in ("granite", "gemma", "gemma2", "gemma3")
        np.testing.assert_allclose(np.asarray(found), weight, rtol=0, atol=scaled * np.abs(weight).max() * 2.0**-9)


def mixed(name):
    return "Q8_0" if "token_embd" in name else "F16" if "attn_v" in name else "BF16" if "attn_k" in name else "Q4_0"


def test_every_tensor_keeps_its_type(tmp_path):
    write_model(tmp_path / "m.gguf", random_model("llama"), "llama", mixed)
    write_model_file(tmp_path / "m.h5", convert_gguf(tmp_path / "m.gguf")[0])
    kept, wide = read_model(tmp_path / "m.h5"), convert_gguf(tmp_path / "m.gguf", "float32")[0]
    of = {name.removeprefix("blocks.1."): weight for name, weight in kept.weights.items()}
    types = {name: getattr(of[f"{name}"], "dtype", None) for name in ("embed.word", "v.weight", "k.weight", "q.weight")}
    assert list(types.values()) == ["q8_0", "float16", "bfloat16", "q4_0"] and kept.stored_dtype == "q4_0"
    for name, weight in wide.weights.items():
        np.testing.assert_array_equal(np.asarray(kept.weights[name]), weight, err_msg=name)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="transformers reads GGUF with accelerate")
def test_check_knows_what_was_rounded(tmp_path, capsys):
    from astra_mpi.cli import main

    model = random_model("llama", attention_bias=False, mlp_bias=False)
    write_model(tmp_path / "m.gguf", model, "llama", lambda name: "Q5_0" if "ffn" in name else "Q4_1", **VOCABULARY)
    assert main(["convert", str(tmp_path / "m.gguf"), str(tmp_path / "m.h5"), "--check"]) == 0
    assert {kind.dtype for kind in read_model(tmp_path / "m.h5").weights.values() if isinstance(kind, Blocks)} == {
        "q8_0",
        "q4_1",
    }
    assert "logits after each of 5 sequences" in capsys.readouterr().out


VOCABULARY = {"vocab_size": SIZES["vocab_size"]}
