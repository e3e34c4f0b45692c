"""GGUF files that are damaged, foreign, contradict themselves or are not supported: one sentence with the cure."""

import struct

import gguf
import numpy as np
import pytest

from astra_mpi.convert.gguf import convert_gguf
from astra_mpi.errors import InputError
from helpers.gguf_files import random_model, write_model
from helpers.processes import astra

SIZE = 8  # of a number in the header


@pytest.fixture(scope="module")
def llama():
    return random_model("llama")


@pytest.fixture(scope="module")
def good(tmp_path_factory, llama):
    path = tmp_path_factory.mktemp("gguf") / "good.gguf"
    write_model(path, llama, "llama")
    return path.read_bytes()


def refused(path, match):
    with pytest.raises(InputError, match=match) as caught:
        convert_gguf(path)
    assert "\n" not in str(caught.value) and str(path.name) in str(caught.value)


def test_damaged_headers(tmp_path, good):
    path = tmp_path / "m.gguf"
    n_tensors, n_keys = 4 + 4, 4 + 4 + SIZE
    changed = {
        r"m\.gguf is not a GGUF file: it begins with b'PK\\x03\\x04'; give one": b"PK\3\4" + good[4:],
        r"m\.gguf is big-endian; make it anew": good[:4] + struct.pack(">I", 3) + good[8:],
        r"m\.gguf is version 1 of GGUF, not 2 or 3; make it anew": good[:4] + struct.pack("<I", 1) + good[8:],
        r"its header goes beyond its end; download": good[:n_tensors] + struct.pack("<Q", 1 << 60) + good[n_keys:],
        r"its header goes beyond its end; ": good[:n_keys] + struct.pack("<Q", 1 << 40) + good[n_keys + SIZE :],
        r"m\.gguf has metadata of the unknown type 77; download it again": good.replace(
            b"general.architecture" + struct.pack("<I", 8), b"general.architecture" + struct.pack("<I", 77)
        ),
    }
    for match, raw in changed.items():
        path.write_bytes(raw)
        refused(path, match)
    for n in (0, 3, 4, 10, 30, 100, 600, 1500, 3000, len(good) // 2, len(good) - 100):
        path.write_bytes(good[:n])
        refused(path, r"m\.gguf is (not a GGUF file: it begins with b'(GGU)?'|truncated).*; (give|download)")
    refused(tmp_path / "none.gguf", r"none\.gguf cannot be read \(No such file or directory\); check the path")


def test_contradicting_metadata(tmp_path, llama):
    path = tmp_path / "m.gguf"
    matrix = np.zeros((32, 32), np.float32)
    cases = [
        (dict(block_count=3), {}, r"m\.gguf has no tensor blk\.2\.attn_k\.bias, .* incomplete, download it again"),
        (dict(block_count=1), {}, r"has tensors that no llama model of 1 blocks known here has: blk\.1\."),
        (dict(block_count=None), {}, r"m\.gguf has no llama\.block_count in its metadata; download it again"),
        (dict(block_count="two"), {}, r"llama\.block_count = 'two' must be an integer >= 1; download it again"),
        (dict(vocab_size=97), {}, r"llama\.vocab_size = 97, but token_embd\.weight has 96 rows; download"),
        (
            {"feed_forward_length": 48},
            {},
            r"m\.gguf: tensor blk\.0\.ffn_\w+\.\w+ has shape .*, which its metadata contradict; download",
        ),
        (
            {"attention.head_count": 5},
            {},
            r"m\.gguf: llama\.embedding_length = 32 is not a multiple of llama\.attention\.head_count = 5",
        ),
        ({"attention.head_count_kv": [2, 4]}, {}, r"head_count_kv differs from block to block \(2 to 4\)"),
        ({"attention.scale": 3.0}, {}, r"llama\.attention\.scale = 3\.0 is not known here and may change answers; use"),
        ({"rope.scaling.type": "dynamic"}, {}, r"rope\.scaling\.type = dynamic is not supported; linear and yarn are"),
        (dict(expert_count=8), {}, r"is a model of experts \(architecture llama\); mixtures of experts are not"),
        ({}, {"blk.0.ffn_gate_exps.weight": matrix}, r"is a model of experts .*; use a dense model"),
        ({}, {"blk.0.attn_q.weight": None}, r"has no tensor blk\.0\.attn_q\.weight; it is incomplete, download"),
        ({}, {"token_embd.weight": None}, r"has no matrix token_embd\.weight; it is incomplete, download it again"),
        (
            {},
            {"output_norm.weight": None},
            r"m\.gguf has no tensor output_norm\.weight; it is incomplete, download it again",
        ),
        ({}, {"blk.0.ssm_a.weight": matrix}, r"tensors that no llama model of 2 blocks known here has: blk\.0\.ssm_a"),
        ({}, {"rope_freqs.weight": np.array([1, 5, 2, 7.0])}, r"rope_freqs\.weight is not a scaling of Llama 3"),
    ]
    for keys, tensors, match in cases:
        write_model(path, llama, "llama", tensors=tensors, **keys)
        refused(path, match)


def test_unsupported_architectures_and_types(tmp_path, llama):
    path = tmp_path / "m.gguf"
    for arch, match in {
        "mamba": r"m\.gguf: the architecture mamba is not supported; use a model of one of llama, ",
        "qwen3moe": r"m\.gguf is a model of experts \(architecture qwen3moe\); .*; use a dense model",
    }.items():
        write_model(path, llama, "llama", change={"general.architecture": arch})
        refused(path, match)
    writer = gguf.GGUFWriter(path, "llama")
    raw = np.zeros((4, 66), np.uint8)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=gguf.GGMLQuantizationType.IQ2_XXS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(
        path, r"m\.gguf: tensor token_embd\.weight is IQ2_XXS, which is not supported; use a file in one of F32, F16"
    )


def test_the_command_refuses_with_one_line(tmp_path, good):
    (tmp_path / "m.gguf").write_bytes(good[: len(good) // 2])
    done = astra("convert", tmp_path / "m.gguf", tmp_path / "m.h5")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is truncated: tensor" in done.stderr
    assert not (tmp_path / "m.h5").exists()
