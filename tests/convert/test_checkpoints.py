"""Checkpoints as they come: heads that are tied or not, names that wrappers changed, files that lack keys. The answers
are those of transformers for the same folder."""

import json

import numpy as np
import pytest
import torch
from differential import ATOL, MISSING, Change, distance
from differential_config import LINEAR, ROPE3, TABLES, YARN
from safetensors.torch import load_file, save_file

from astra_mpi.convert.hugging_face import convert
from astra_mpi.errors import InputError
from helpers.checkpoints import BERT, save_random


def made(name, folder):
    table = TABLES[name]()
    table.make(folder)
    return table


def edit(folder, **changes):
    for key, value in changes.items():
        Change(key, value).apply(folder)


def rename(folder, change):
    """The tensors under other names, or others: change(dict) -> dict."""
    path = folder / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in change(load_file(path)).items()}, path)


def check_same(table, folder):
    """Our answer is that of transformers; the notes of `convert`."""
    got, notes = table.got(folder)
    assert distance(got, table.expected(folder)) < ATOL
    return notes


WORD = {"gpt2": "transformer.wte.weight", "llama": "model.embed_tokens.weight"}
HEADS = {
    "both": lambda word, tensors: tensors | {"lm_head.weight": tensors[word].flip(0) + 0.1},
    "equal": lambda word, tensors: tensors | {"lm_head.weight": tensors[word].clone()},
    "word": lambda word, tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"},
    "head": lambda word, tensors: {"lm_head.weight": tensors[word]} | {k: v for k, v in tensors.items() if k != word},
}


@pytest.mark.parametrize("name", WORD)
@pytest.mark.parametrize("flag", [True, False, MISSING])
@pytest.mark.parametrize("heads", HEADS)
def test_heads_that_are_tied_or_not(tmp_path, name, flag, heads):
    """A head that differs from the embedding is kept, whatever the flag says; one that is alone stands for both."""
    table = made(name, tmp_path)
    rename(tmp_path, lambda tensors: HEADS[heads](WORD[name], tensors))
    edit(tmp_path, tie_word_embeddings=flag)
    tied = flag is True or (flag is MISSING and name == "gpt2")
    if heads in ("word", "head") and not tied:  # transformers makes the other one up
        assert table.expected(tmp_path) is None
        with pytest.raises(InputError, match=r"tie_word_embeddings is false|no tensor (wte|embed_tokens)"):
            convert(tmp_path)
        return
    notes = check_same(table, tmp_path)
    assert convert(tmp_path)[0].config.tied is (tied and heads != "both")
    assert any("tie_word_embeddings is true, but lm_head.weight" in n for n in notes) is (tied and heads == "both")


@pytest.mark.parametrize("scaling", [LINEAR, ROPE3, YARN])
def test_rope_scaling_beside_rope_parameters(tmp_path, scaling):
    table = made("llama", tmp_path)
    edit(tmp_path, rope_scaling=scaling)
    check_same(table, tmp_path)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("llama", ("rms_norm_eps", "hidden_act", "max_position_embeddings", "rope_parameters", "attention_bias")),
        ("bert", ("layer_norm_eps", "hidden_act", "type_vocab_size")),
        ("gpt2", ("layer_norm_epsilon", "activation_function", "n_inner", "tie_word_embeddings")),
        ("vit", ("layer_norm_eps", "hidden_act", "qkv_bias", "num_channels")),
    ],
)
def test_missing_keys_have_the_defaults_of_transformers(tmp_path, name, missing):
    table = made(name, tmp_path)
    edit(tmp_path, **dict.fromkeys(missing, MISSING))
    notes = check_same(table, tmp_path)
    assert any(f"config.json has no {missing[0]}; " in note and "the reference's default" in note for note in notes)


WRAPPERS = [("bert", "module."), ("bert", "0.auto_model."), ("vit", "net.encoder."), ("gpt2", "module._orig_mod.")]
WRAPPERS += [("gpt2", "_orig_mod."), ("llama", "base_model.model.")]


@pytest.mark.parametrize(("name", "wrapper"), WRAPPERS)
def test_what_a_wrapper_put_before_all_names(tmp_path, name, wrapper):
    table = made(name, tmp_path)
    want = table.expected(tmp_path)
    rename(tmp_path, lambda tensors: {wrapper + name: tensor for name, tensor in tensors.items()})
    got, notes = table.got(tmp_path)
    assert distance(got, want) < ATOL
    assert f"all tensors begin with '{wrapper}', which a wrapper put there; it was taken off" in notes


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_names_with_and_without_the_prefix_of_the_base_model(tmp_path, name):
    table = made(name, tmp_path)
    prefix = table.family.hf_prefix
    rename(tmp_path, lambda tensors: {k.removeprefix(prefix): v for k, v in tensors.items()})
    check_same(table, tmp_path)


def test_vit_under_the_names_of_transformers_5(tmp_path):
    table = made("vit", tmp_path)
    state = table.auto.from_pretrained(tmp_path).state_dict()
    assert "vit.layers.0.attention.q_proj.weight" in state
    rename(tmp_path, lambda tensors: state)
    check_same(table, tmp_path)


Q = "encoder.layer.0.attention.self.query"
ONE = "embeddings.LayerNorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {f"module.{k}": v for k, v in t.items()} | {"dense.weight": torch.ones(2)}, "others do not"),
        (
            lambda t: {f"{p}.{k}": v for p in ("query", "passage") for k, v in t.items()},
            "models, under passage",
        ),
        (lambda t: t | {f"bert.{ONE}": t[ONE]}, "two tensors for one weight"),
        (lambda t: t | {f"{Q}.lora_A.weight": torch.ones(2)}, "has an adapter.*merge_and_unload"),
        (lambda t: t | {f"{Q}.qweight": torch.ones(2)}, "has quantised weights.*full precision"),
        (
            lambda t: {k: v for k, v in t.items() if "LayerNorm" not in k},
            "has no tensor .*it has 1 others|has no tensor",
        ),
    ],
)
def test_tensors_that_are_not_those_of_a_model(tmp_path, change, message):
    made("bert", tmp_path)
    rename(tmp_path, change)
    with pytest.raises(InputError, match=message):
        convert(tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_base_model_without_a_head(tmp_path, name):
    made(name, tmp_path)
    edit(tmp_path, architectures=["GPT2Model" if name == "gpt2" else "LlamaModel"], tie_word_embeddings=False)
    rename(tmp_path, lambda tensors: HEADS["word"](WORD[name], tensors))
    with pytest.raises(InputError, match="base model without a head; give the checkpoint of the language model"):
        convert(tmp_path)


def test_classifier_of_a_folder_that_names_no_class(tmp_path):
    table = made("vit", tmp_path)
    edit(tmp_path, architectures=MISSING)
    check_same(table, tmp_path)
    edit(tmp_path, num_labels=10**12)
    with pytest.raises(InputError, match=r"classifier\.weight is of 3 classes, but num_labels"):
        convert(tmp_path)


def test_names_are_made_only_of_classes_that_the_head_has(tmp_path):
    save_random(tmp_path, "BertForSequenceClassification", BERT | dict(num_labels=3))
    assert convert(tmp_path)[0].config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    edit(tmp_path, num_labels=10**12)
    with pytest.raises(InputError, match=r"give 1000000000000 classes, but classifier\.weight has shape \(3,"):
        convert(tmp_path)


def test_numbers_as_large_as_can_be_written(tmp_path):
    """A line of config.json takes no memory."""
    made("llama", tmp_path)
    for key in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "intermediate_size"):
        kept = json.loads((tmp_path / "config.json").read_text())[key]
        edit(tmp_path, **{key: 10**15})
        with pytest.raises(InputError):
            convert(tmp_path)
        edit(tmp_path, **{key: kept})


def test_tensors_are_compared_in_pieces(tmp_path, monkeypatch):
    from astra_mpi.checkpoint import folder as hf_folder
    from astra_mpi.checkpoint.tensors import equal

    monkeypatch.setattr(hf_folder, "_PIECE", 40)
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 20)))
    other = values.clone()
    other[6, 19] += 1
    save_file({"a": values, "b": values.clone(), "c": other, "d": values[:6].clone()}, tmp_path / "model.safetensors")
    tensors, _ = hf_folder.open_weights(tmp_path)
    assert [len(piece) for piece in tensors["a"].pieces()] == [2, 2, 2, 1]
    assert [equal(tensors["a"], tensors[name]) for name in "abcd"] == [True, True, False, False]
