"""GGUF files of small random models: the same tensors, settings, logits as the models of transformers they are of."""

import importlib.util

import gguf
import numpy as np
import pytest

import astra_mpi
from astra_mpi.convert.gguf import convert_gguf, kept_dtype
from astra_mpi.convert.gguf.architectures import ARCHITECTURES
from astra_mpi.convert.gguf.config import hf_config
from astra_mpi.convert.gguf.header import read_header
from astra_mpi.convert.gguf.metadata import Metadata
from astra_mpi.convert.gguf.names import hf_tensors
from astra_mpi.convert.gguf.tensors import TYPES, GGUFTensor, open_tensors
from astra_mpi.files.modelfile import write_model as write_model_file
from astra_mpi.models import FAMILIES
from helpers.checkpoints import close, outputs
from helpers.gguf_files import MODELS, SIZES, frequency_factors, random_model, split, write_model
from helpers.minilm import minilm_folder

IDS = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 20))
#: architectures that transformers itself reads from GGUF with all that their metadata say
READ_BY_TRANSFORMERS = ("llama", "qwen2", "gemma2", "stablelm")


def read(path):
    """-> (config.json, tensors by Hugging Face name)."""
    header = read_header(path)
    stored = open_tensors(header)
    metadata = Metadata(path, dict(header.metadata), stored)
    kind = ARCHITECTURES[metadata.architecture]
    config = hf_config(metadata, kind, stored)
    return config, hf_tensors(metadata, kind, config, stored)


def rebuilt(model, config, tensors):
    """The transformers model of what was read."""
    import torch
    import transformers

    again = type(model)(transformers.AutoConfig.for_model(**config)).eval()
    state = {name.replace("embed_out", "lm_head"): torch.from_numpy(tensor.read()) for name, tensor in tensors.items()}
    left = again.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert {name.split(".")[0] for name in left.missing_keys} <= {"lm_head", "pooler"}
    return again


def test_every_architecture_is_written_by_the_tests():
    assert set(ARCHITECTURES) == set(MODELS)
    assert {kind.class_name: kind.model_type for kind in ARCHITECTURES.values()} == {
        name: random_type(name) for name, _ in MODELS.values()
    }


def random_type(name):
    import transformers

    return getattr(transformers, name).config_class.model_type


@pytest.mark.parametrize("arch", MODELS)
def test_settings_and_tensors_give_the_same_model(tmp_path, arch):
    model = random_model(arch)
    write_model(tmp_path / "m.gguf", model, arch)
    config, tensors = read(tmp_path / "m.gguf")
    again = rebuilt(model, config, tensors)
    one, two = (next(iter(outputs(m, input_ids=IDS).values())) for m in (model, again))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("arch", READ_BY_TRANSFORMERS)
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="transformers reads GGUF with accelerate")
def test_transformers_reads_the_same(tmp_path, arch):
    import transformers

    model = random_model(arch, **dict.fromkeys(("attention_bias", "mlp_bias"), False) if arch == "llama" else {})
    write_model(tmp_path / "m.gguf", model, arch, vocab_size=SIZES["vocab_size"])
    theirs = type(model).from_pretrained(tmp_path, gguf_file="m.gguf", dtype="float32").eval()
    assert isinstance(theirs, transformers.PreTrainedModel)
    _, tensors = read(tmp_path / "m.gguf")
    state = theirs.state_dict()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.read(), state[name].numpy(), err_msg=name)


def supported():
    return [arch for arch, kind in ARCHITECTURES.items() if kind.model_type in FAMILIES]


@pytest.mark.parametrize("arch", supported())
def test_converted_models_answer_as_transformers(tmp_path, arch):
    from mpi4py import MPI

    model = random_model(arch)
    write_model(tmp_path / "m.gguf", model, arch)
    file, notes = convert_gguf(tmp_path / "m.gguf", "float32")
    assert len(notes) <= 1 and "take only token ids" in notes[0]
    write_model_file(tmp_path / "m.h5", file)
    ours = astra_mpi.load(str(tmp_path / "m.h5"), comm=MPI.COMM_SELF, strategy="single")
    want = outputs(model, input_ids=IDS)
    if arch == "bert":
        close(ours(IDS, np.ones(IDS.shape, bool), gather=True)[1], want["last_hidden_state"])
    else:
        close(ours(IDS, np.ones(IDS.shape, bool), gather=True)[1], want["logits"])


def test_minilm_as_gguf_makes_the_same_tokens_and_weights(tmp_path):
    import transformers

    from astra_mpi.convert.hugging_face import convert
    from astra_mpi.inputs.text import Tokenizer

    folder = minilm_folder()
    model = transformers.AutoModel.from_pretrained(folder)
    pieces = sorted((vocab := transformers.AutoTokenizer.from_pretrained(folder).get_vocab()), key=vocab.get)

    def vocabulary(writer):
        whole = [p if p[0] + p[-1] == "[]" and len(p) > 2 else None for p in pieces]
        stored = [w or (p[2:] if p.startswith("##") else f"▁{p}") for w, p in zip(whole, pieces, strict=True)]
        writer.add_tokenizer_model("bert")
        writer.add_token_list(stored)
        writer.add_token_types(
            [3 if piece in ("[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]") else 1 for piece in pieces]
        )
        for name, i in {"cls": 101, "seperator": 102, "unknown": 100, "padding": 0, "mask": 103}.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", i)

    write_model(tmp_path / "m.gguf", model, "bert", vocabulary=vocabulary, pooling_type=1)
    ours, notes = convert_gguf(tmp_path / "m.gguf")
    theirs, _ = convert(folder)
    assert ours.config.pooling == "mean" and ours.stored_dtype == "float32" and "scaled to length 1" in notes[-1]
    assert all(np.array_equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)
    texts = ["Hello, Wörld 123!", "unaffable 中文 🎉"]
    one, two = (Tokenizer(file.tokenizer).encode(texts, 60) for file in (ours, theirs))
    assert [row.tolist() for row in one] == [row.tolist() for row in two]
    write_model(tmp_path / "m.gguf", random_model("bert"), "bert", pooling_type=4)
    with pytest.raises(
        astra_mpi.errors.InputError, match=r"bert\.pooling_type = 4 \(a reranker's\) is not supported; "
    ):
        convert_gguf(tmp_path / "m.gguf")


def test_types_are_widened_as_the_library_does(tmp_path):
    rows, rng = 5, np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "types.gguf", "llama")
    raw = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        width = max(block, 32) * 2
        raw[name] = rng.integers(0, 60, (rows, width // block * n_bytes)).astype(np.uint8)  # factors stay finite
        if name in ("F32", "F16"):
            raw[name] = rng.normal(size=(rows, width)).astype({"F32": "f4", "F16": "f2"}[name])
            writer.add_tensor(name, raw[name])
        else:
            writer.add_tensor(name, raw[name], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = open_tensors(read_header(tmp_path / "types.gguf"))
    for name, tensor in tensors.items():
        want = dequantized(raw[name], name)
        np.testing.assert_allclose(tensor.read(), want, rtol=1e-6, atol=0, err_msg=name)
        np.testing.assert_array_equal(np.concatenate(list(tensor.pieces())), tensor.read())


def dequantized(raw, name):
    """By transformers' own kernels, in PyTorch."""
    import torch
    from transformers.integrations.gguf.dequant import dequantize

    if name in ("F32", "F16"):
        return raw.astype(np.float32)
    if name == "BF16":
        return torch.from_numpy(raw).view(torch.bfloat16).float().numpy()
    if name in ("Q5_0", "Q5_1"):
        return five_bits(raw, offset=name == "Q5_1")
    kind = gguf.GGMLQuantizationType[name]
    return dequantize(torch.from_numpy(raw.ravel()), int(kind)).numpy().reshape(len(raw), -1)


def five_bits(raw, offset):
    """Q5_0 and Q5_1 as the format describes them: a factor, what is added, fifth bits, then four bits of 32 numbers."""
    blocks, start = raw.reshape(-1, 24 if offset else 22), 4 if offset else 2
    factors = blocks[:, :start].copy().view(np.float16).astype(np.float32)
    fifth = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
    low = np.concatenate([blocks[:, start + 4 :] & 15, blocks[:, start + 4 :] >> 4], axis=1)
    numbers = (low + 16 * fifth.astype(np.int32)).astype(np.float32)
    wide = factors[:, :1] * numbers + factors[:, 1:] if offset else factors[:, :1] * (numbers - 16)
    return wide.reshape(len(raw), -1)


def test_storage_is_named_by_what_keeps_most_numbers():
    def of(*kinds):
        return kept_dtype({k: GGUFTensor(None, k, k, (2, 2), (2, 2)) for k in kinds})

    assert (of("F32"), of("F16"), of("BF16")) == ("float32", "float16", "bfloat16")
    assert (of("Q4_0", "Q6_K"), of("Q4_K"), of("Q6_K", "Q5_K", "F16")) == ("q4_0", "q4_1", "q8_0")


def test_parts_of_a_split_file(tmp_path):
    model = random_model("llama")
    write_model(tmp_path / "whole.gguf", model, "llama")
    parts = split(tmp_path / "whole.gguf", tmp_path, "m", 3)
    whole, _ = convert_gguf(tmp_path / "whole.gguf", "float32")
    for part in parts:
        again, _ = convert_gguf(part, "float32")
        assert all(np.array_equal(again.weights[name], whole.weights[name]) for name in whole.weights)
    parts[1].unlink()
    with pytest.raises(
        astra_mpi.errors.InputError, match=r"m-00002-of-00003\.gguf of its 3 parts is missing; download"
    ):
        convert_gguf(parts[2])


ROPES = {
    "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    "linear": dict(factor=4.0),
    "yarn": dict(factor=4.0, original_max_position_embeddings=10),
}


@pytest.mark.parametrize("kind", ROPES)
def test_scaled_rotary_positions(tmp_path, kind):
    asked = {"rope_type": kind, "rope_theta": 5000.0, **ROPES[kind]}
    model = random_model("llama", rope_parameters=asked, hidden_size=128)
    keys = {}
    if kind != "llama3":
        keys = {"rope.scaling.type": kind, "rope.scaling.factor": asked["factor"]}
        keys |= {"rope.scaling.original_context_length": 10} if kind == "yarn" else {}
    more = {"rope_freqs.weight": frequency_factors(model)} if kind == "llama3" else {}
    write_model(tmp_path / "m.gguf", model, "llama", tensors=more, **keys)
    config, tensors = read(tmp_path / "m.gguf")
    found = config["rope_parameters"]
    assert found.items() >= {k: pytest.approx(v) if isinstance(v, float) else v for k, v in asked.items()}.items()
    again = rebuilt(model, config, tensors)
    np.testing.assert_allclose(
        outputs(again, input_ids=IDS)["logits"], outputs(model, input_ids=IDS)["logits"], atol=1e-4
    )


def test_long_factors_of_phi3(tmp_path):
    short, long = np.linspace(1, 1.5, 4), np.linspace(1, 9, 4)
    asked = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 10}
    asked |= {"short_factor": short.tolist(), "long_factor": long.tolist()}
    model = random_model("phi3", rope_parameters=asked, original_max_position_embeddings=10)
    write_model(
        tmp_path / "m.gguf", model, "phi3", **{"rope.scaling.original_context_length": 10},
        tensors={"rope_factors_long.weight": long, "rope_factors_short.weight": short},
    )  # fmt: skip
    again = rebuilt(model, *read(tmp_path / "m.gguf"))
    one, two = (outputs(m, input_ids=IDS)["logits"] for m in (model, again))
    np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="transformers reads GGUF with accelerate")
def test_check_holds_the_file_against_transformers(tmp_path, capsys):
    from astra_mpi.cli import main

    model = random_model("llama", attention_bias=False, mlp_bias=False)
    write_model(tmp_path / "m.gguf", model, "llama", "Q8_0", vocab_size=SIZES["vocab_size"])
    target = str(tmp_path / "m.h5")
    assert main(["convert", str(tmp_path / "m.gguf"), target, "--check"]) == 0
    said = capsys.readouterr().out
    assert "logits after each of 5 sequences" in said and "greedy continuation" in said and "q8_0" in said
    write_model(tmp_path / "b.gguf", random_model("llama"), "llama", vocab_size=SIZES["vocab_size"])
    assert main(["convert", str(tmp_path / "b.gguf"), str(tmp_path / "b.h5"), "--check"]) == 2
    said = capsys.readouterr().err
    assert "does not read attention_bias, mlp_bias of" in said and not (tmp_path / "b.h5").exists()
