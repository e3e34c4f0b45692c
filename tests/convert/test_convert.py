"""convert and init: Hugging Face folders as the libraries save them, broken ones, and random models."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from astra_mpi.cli import main
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.hugging_face import convert
from astra_mpi.convert.presets import preset_config, presets, random_weights
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import read_model, weight_shapes, write_model
from astra_mpi.inputs.text import tokenizer_of
from helpers.fakes import bert_config

SIZES = dict(hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=40)


def bert(**changes):
    torch.manual_seed(0)
    settings = SIZES | dict(vocab_size=50, max_position_embeddings=20) | changes
    return transformers.BertModel(transformers.BertConfig(**settings))


def vit(model=transformers.ViTForImageClassification, **changes):
    torch.manual_seed(0)
    settings = SIZES | dict(image_size=(8, 12), patch_size=4, num_channels=1, id2label={0: "cat", 1: "dog", 2: "gnu"})
    return model(transformers.ViTConfig(**settings | changes))


@pytest.fixture
def folder(tmp_path):
    """A BERT folder to break."""
    bert().save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def same(weights, name, tensor):
    """Our weight equals a tensor of transformers: exactly, as nothing is computed."""
    np.testing.assert_array_equal(weights[name], tensor.detach().float().numpy())


def check_bert(weights, model):
    bert = model.base_model
    same(weights, "embed.word", bert.embeddings.word_embeddings.weight)
    same(weights, "embed.position", bert.embeddings.position_embeddings.weight)
    same(weights, "embed.type", bert.embeddings.token_type_embeddings.weight)
    same(weights, "embed.norm.bias", bert.embeddings.LayerNorm.bias)
    for i, layer in enumerate(bert.encoder.layer):
        same(weights, f"blocks.{i}.q.weight", layer.attention.self.query.weight.T)
        same(weights, f"blocks.{i}.k.weight", layer.attention.self.key.weight.T)
        same(weights, f"blocks.{i}.v.bias", layer.attention.self.value.bias)
        same(weights, f"blocks.{i}.o.weight", layer.attention.output.dense.weight.T)
        same(weights, f"blocks.{i}.norm1.weight", layer.attention.output.LayerNorm.weight)
        same(weights, f"blocks.{i}.fc1.weight", layer.intermediate.dense.weight.T)
        same(weights, f"blocks.{i}.fc2.weight", layer.output.dense.weight.T)
        same(weights, f"blocks.{i}.norm2.bias", layer.output.LayerNorm.bias)


def set_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- what the libraries save ---------------------------------------------------------------------------------------


def test_bert(folder):
    model, notes = convert(folder)
    check_bert(model.weights, bert())
    same(model.weights, "pooler.weight", bert().pooler.dense.weight.T)
    assert model.config == bert_config(max_positions=20, has_pooler=True)
    assert model.preprocess == {"max_tokens": 20}
    assert [note for note in notes if "tokenizer.json" in note] == notes
    assert model.provenance["source"] == "hf"
    assert list(json.loads(model.provenance["source_sha256"])) == ["model.safetensors"]


def test_prefix_and_unused_tensors(tmp_path):
    source = transformers.BertForMaskedLM(bert().config)
    source.save_pretrained(tmp_path)
    model, notes = convert(tmp_path)
    check_bert(model.weights, source)
    assert not model.config.has_pooler
    assert re.search(r"5 tensors .* left out: cls\.predictions", notes[0])


def test_shards(tmp_path):
    bert().save_pretrained(tmp_path, max_shard_size="8KB")
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    model, _ = convert(tmp_path)
    check_bert(model.weights, bert())
    assert list(json.loads(model.provenance["source_sha256"])) == shards


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_widened(tmp_path, dtype):
    bert().to(dtype).save_pretrained(tmp_path)
    check_bert(convert(tmp_path)[0].weights, bert().to(dtype))


def test_one_segment_type(tmp_path):
    bert(type_vocab_size=1).save_pretrained(tmp_path)
    check_bert(convert(tmp_path)[0].weights, bert(type_vocab_size=1))


def test_old_names_of_norms(tmp_path):
    bert().save_pretrained(tmp_path)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in bert().state_dict().items()
    }
    save_file(old, tmp_path / "model.safetensors")
    check_bert(convert(tmp_path)[0].weights, bert())


def test_vit(tmp_path):
    vit().save_pretrained(tmp_path)
    model, _ = convert(tmp_path)
    base, weights = vit().vit, model.weights
    same(weights, "embed.patch.weight", base.embeddings.patch_embeddings.projection.weight.reshape(24, 16).T)
    same(weights, "embed.class", base.embeddings.cls_token[0, 0])
    same(weights, "embed.position", base.embeddings.position_embeddings[0])
    same(weights, "norm.weight", base.layernorm.weight)
    same(weights, "head.weight", vit().classifier.weight.T)
    for i, layer in enumerate(base.layers):
        same(weights, f"blocks.{i}.q.weight", layer.attention.q_proj.weight.T)
        same(weights, f"blocks.{i}.k.bias", layer.attention.k_proj.bias)
        same(weights, f"blocks.{i}.v.weight", layer.attention.v_proj.weight.T)
        same(weights, f"blocks.{i}.o.weight", layer.attention.o_proj.weight.T)
        same(weights, f"blocks.{i}.norm1.weight", layer.layernorm_before.weight)
        same(weights, f"blocks.{i}.norm2.bias", layer.layernorm_after.bias)
        same(weights, f"blocks.{i}.fc1.weight", layer.mlp.fc1.weight.T)
        same(weights, f"blocks.{i}.fc2.weight", layer.mlp.fc2.weight.T)
    assert model.config.labels == ("cat", "dog", "gnu")
    assert model.config.image_size == (8, 12)


def test_vit_without_classifier_and_biases(tmp_path):
    vit(transformers.ViTModel, qkv_bias=False).save_pretrained(tmp_path)
    model, notes = convert(tmp_path)
    assert model.config.n_classes == 0
    assert "blocks.0.q.bias" not in model.weights and "blocks.0.o.bias" in model.weights
    assert "pooler.dense.bias, pooler.dense.weight" in notes[0]


# --- how a model is used -------------------------------------------------------------------------------------------


def sentence_transformers(folder, pooling, *more, tokens=7):
    kinds = ["Transformer", "Pooling", *more]
    paths = ["", "1_Pooling", "2_More"][: len(kinds)]
    kind = "sentence_transformers.models."
    modules = [{"name": k, "type": kind + k, "path": p} for k, p in zip(kinds, paths, strict=True)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 24} | pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": tokens}))


@pytest.mark.parametrize(
    ("pooling", "more", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, [], ("mean", False)),
        ({"pooling_mode_cls_token": True}, ["Normalize"], ("cls", True)),
        ({"pooling_mode": "cls"}, [], ("cls", False)),
    ],
)
def test_sentence_encoder(folder, pooling, more, expected):
    sentence_transformers(folder, pooling, *more)
    model, _ = convert(folder)
    assert (model.config.pooling, model.config.normalize) == expected
    assert model.preprocess == {"max_tokens": 7}


def test_transformer_in_a_folder_of_its_own(folder):
    sentence_transformers(folder, {"pooling_mode": "mean"})
    (folder / "0_Transformer").mkdir()
    for path in folder.glob("*.*"):
        if path.name != "modules.json":
            path.rename(folder / "0_Transformer" / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    check_bert(convert(folder)[0].weights, bert())


def test_longest_text_never_exceeds_the_positions(folder):
    sentence_transformers(folder, {"pooling_mode": "mean"}, tokens=1000)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": int(1e30)}))
    assert convert(folder)[0].preprocess == {"max_tokens": 20}


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        ({"pooling_mode_max_tokens": True}, [], r"1_Pooling/config\.json: pooling_mode_max_tokens is not supported"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, [], "only mean, cls and lasttoken"),
        (
            {"pooling_mode": "mean"},
            ["LayerNorm"],
            r"modules\.json has a module of type sentence_transformers\.models\.LayerNorm",
        ),
    ],
)
def test_unsupported_sentence_encoder(folder, pooling, more, message):
    sentence_transformers(folder, pooling, *more)
    with pytest.raises(InputError, match=message):
        convert(folder)


def put_tokenizer(folder, n_tokens):
    vocabulary = {"größe": 0, "[UNK]": 1} | {f"word{i}": i for i in range(2, n_tokens)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.save(str(folder / "tokenizer.json"))
    return (folder / "tokenizer.json").read_text(encoding="utf-8")


def test_tokenizer_is_taken_as_it_is_where_its_class_says_so(folder):
    text = word_tokenizer({"größe": 1, "a": 0})
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    model, notes = convert(folder)
    assert json.loads(model.tokenizer)["model"] == json.loads(text)["model"]
    assert not notes


@pytest.mark.parametrize("added", [False, True])
def test_tokenizer_that_does_not_fit_the_vocabulary(folder, added):
    vocab = bert_config().vocab_size
    words = {"a": 0} | {f"w{i}": i for i in range(1, vocab)}
    words = word_tokenizer(words, {"last": vocab}) if added else word_tokenizer(words | {"last": vocab})
    (folder / "tokenizer.json").write_text(words)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    if added:  # which only a text that spells it gives
        model, notes = convert(folder)
        assert re.search(r"1 of the tokenizer's tokens \('last'\) lie beyond", notes[0])
        with pytest.raises(
            InputError, match=rf"text 1 has the token 'last' \(id {vocab}\), for which the model has no"
        ):
            tokenizer_of(model.tokenizer, vocab).encode(["w3", "last"], 9)
        return
    said = rf"tokenizer\.json: the tokenizer does not fit the model: it has ids up to {vocab} \('last'\)"
    with pytest.raises(InputError, match=said):
        convert(folder)


def word_tokenizer(vocab, added=()):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    extra = [{"id": i, "content": word, **flags} for word, i in dict(added).items()]
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}
    return json.dumps({"version": "1.0", "added_tokens": extra, "model": model}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("in_config", "in_generation", "ends"),
    [(None, None, []), (3, None, [3]), ([3, 4], None, [3, 4]), (3, [5, 6], [5, 6]), (50256, None, [])],
)
def test_end_tokens(tmp_path, in_config, in_generation, ends):
    gpt2().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    set_json(tmp_path / "config.json", eos_token_id=in_config)
    if in_generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": in_generation}))
    assert convert(tmp_path)[0].preprocess["end_tokens"] == ends


PREPROCESS = {"size": {"height": 8, "width": 12}, "image_mean": [0.4], "image_std": [0.2], "resample": 3}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"rescale": 1 / 255, "resample": 3}),
        ({"do_rescale": False}, {"rescale": 1.0}),
        ({"rescale_factor": 1 / 16}, {"rescale": 1 / 16}),
        ({"do_normalize": False}, {"mean": (0.0,), "std": (1.0,)}),
        ({"do_resize": False, "size": 224}, {"size": (8, 12), "resize": None}),
    ],
)
def test_image_preprocessing(tmp_path, changes, expected):
    vit().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESS | changes))
    model, notes = convert(tmp_path)
    assert not notes
    assert model.preprocess.items() >= expected.items()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 224}, r"size = \(224, 224\) does not fit the image_size \(8, 12\) of config\.json"),
        ({"size": {"longest_edge": 8}}, "longest_edge.* is not supported"),
        ({"do_center_crop": True}, "crop_size is needed"),
        ({"resample": None}, "resample is needed"),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "are for 3 channels, config.json says 1"),
        (None, "preprocessor_config.json is missing"),
    ],
)
def test_unsupported_image_preprocessing_is_a_note(tmp_path, changes, message):
    vit().save_pretrained(tmp_path)
    if changes is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESS | changes))
    model, notes = convert(tmp_path)
    assert model.preprocess is None
    assert re.search(message, notes[0]) and "only float32 images" in notes[0]


# --- broken folders ------------------------------------------------------------------------------------------------


def remove(name):
    return lambda folder: (folder / name).unlink()


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def module(path):
    return json.dumps([{"name": "0", "type": "sentence_transformers.models.Transformer", "path": path}]).encode()


def edit(**changes):
    return lambda folder: set_json(folder / "config.json", **changes)


def drop_key(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))


def cut(n_bytes):
    def damage(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:n_bytes])

    return damage


def pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shard_index(shard):
    def damage(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))

    return damage


def integers(folder):
    tensors = {name: tensor.to(torch.int64) for name, tensor in bert().state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


BROKEN = [
    pytest.param(shutil.rmtree, "hf is not a folder", id="no-folder"),
    pytest.param(remove("config.json"), r"config\.json is missing", id="no-config"),
    pytest.param(put("config.json", b"{"), r"config\.json is not valid JSON", id="config-not-json"),
    pytest.param(put("config.json", b"\xff\xfe\xff"), r"config\.json is not valid JSON", id="config-binary"),
    pytest.param(put("config.json", b"[]"), r"config\.json is not a JSON object", id="config-list"),
    pytest.param(edit(model_type="mamba"), "model_type 'mamba' is not supported; use one of", id="family"),
    pytest.param(edit(model_type=None), "model_type 'None' is not supported", id="no-family"),
    pytest.param(edit(model_type=[["bert"]]), r"model_type '\[\['bert'\]\]' is not supported", id="nested-family"),
    pytest.param(
        drop_key, r"word_embeddings.weight has shape \(50, 24\).*has no hidden_size; 768 was", id="config-key"
    ),
    pytest.param(edit(hidden_act="mish"), 'config.json: hidden_act: unknown activation "mish"', id="activation"),
    pytest.param(edit(vocab_size="many"), "config.json.*vocab_size", id="config-type"),
    pytest.param(edit(num_hidden_layers=3), r"no tensor (encoder\.layer\.2\.\S+, ){16}which its config", id="tensor"),
    pytest.param(
        edit(num_hidden_layers=10**7), "too few tensors for num_hidden_layers = 10000000", id="so-many-blocks"
    ),
    pytest.param(edit(vocab_size=51), r"word_embeddings.weight has shape \(50, 24\)", id="shape"),
    pytest.param(edit(vocab_size=24, hidden_size=50, num_attention_heads=5), "config.json contradicts", id="swapped"),
    pytest.param(remove("model.safetensors"), "has no model.safetensors", id="no-weights"),
    pytest.param(pickle_only, r"pytorch_model\.bin: a pickle of PyTorch, which is never loaded", id="pickle"),
    pytest.param(cut(4), "truncated or no safetensors", id="cut-length"),
    pytest.param(cut(100), "truncated or no safetensors", id="cut-header"),
    pytest.param(cut(-1), "model.safetensors is truncated", id="cut-data"),
    pytest.param(put("model.safetensors", b"\x02" + bytes(7) + b"[]"), "no safetensors file", id="header-list"),
    pytest.param(shard_index("model-9.safetensors"), "model-9.safetensors is missing, though", id="no-shard"),
    pytest.param(shard_index("../model.safetensors"), "outside the folder", id="shard-elsewhere"),
    pytest.param(integers, "is I64; save the model as float32", id="integers"),
    pytest.param(put("tokenizer.json", b"{"), "tokenizer.json is not valid JSON", id="tokenizer"),
    pytest.param(put("modules.json", b"[1]"), "modules.json is damaged", id="modules"),
    pytest.param(put("modules.json", module("a" * 5000)), "modules.json is damaged", id="module-name"),
    pytest.param(put("modules.json", module("../elsewhere")), "is outside the folder", id="module-outside"),
    pytest.param(put("tokenizer_config.json", b'{"model_max_length": "x"}'), "must be a positive integer", id="length"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_broken_folder(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message):
        convert(folder)


@pytest.mark.parametrize(
    "entry", [{"data_offsets": [0, 8]}, {"data_offsets": [8, 0]}, {"shape": [-1, -24]}, {"dtype": 1}]
)
def test_headers_that_lie(folder, entry):
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["embeddings.LayerNorm.bias"] |= entry
    lie = json.dumps(header).encode()
    path.write_bytes(len(lie).to_bytes(8, "little") + lie + raw[8 + length :])
    with pytest.raises(InputError):
        convert(folder)


def test_not_finite_weights_are_refused(folder, tmp_path, capsys):
    source = bert()
    source.encoder.layer[1].output.dense.bias.data[3] = float("nan")
    source.save_pretrained(folder)
    assert main(["convert", str(folder), str(tmp_path / "m.h5")]) == 2
    assert "blocks.1.fc2.bias has NaN" in capsys.readouterr().err
    assert not (tmp_path / "m.h5").exists()


# --- the commands --------------------------------------------------------------------------------------------------


def test_convert_command(folder, tmp_path, capsys):
    out = tmp_path / "m.h5"
    assert main(["convert", str(folder), str(out), "--dtype", "float16"]) == 0
    model = read_model(out)
    assert (model.stored_dtype, model.config) == ("float16", convert(folder)[0].config)
    assert model.provenance["command"] == "convert hf m.h5 --dtype float16"
    assert str(tmp_path) not in "".join(model.provenance.values())
    printed = capsys.readouterr()
    assert "note: " in printed.err and "tokenizer.json" in printed.err
    assert main(["info", str(out), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["dtypes"] == ["float16", "float32"]


def test_presets_have_their_published_sizes():
    """Parameters of ViT-B/16 with its classifier, and of BERT-Base without pooler."""
    sizes = {"vit-base": 86_567_656, "bert-base": 108_891_648}
    for name, n in sizes.items():
        config = preset_config(name)
        assert sum(int(np.prod(shape)) for shape in weight_shapes(config).values()) == n


def test_random_weights():
    config = preset_config("bert-tiny")
    weights = random_weights(config, 3)
    assert weights["blocks.0.q.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert set(weights["blocks.1.norm2.weight"]) == set(weights["embed.norm.weight"]) == {1}
    assert not weights["blocks.1.fc1.bias"].any()
    again, other = random_weights(config, 3), random_weights(config, 4)
    np.testing.assert_array_equal(weights["embed.word"], again["embed.word"])
    assert not np.array_equal(weights["embed.word"], other["embed.word"])


def test_unknown_preset():
    with pytest.raises(InputError, match="'vit-huge' is unknown; use one of vit-tiny"):
        preset_config("vit-huge")
    assert {"vit-tiny", "vit-base", "bert-tiny", "bert-base"} <= set(presets())


def test_init_command(tmp_path, capsys):
    arguments = ["--tokens", "6", "--stages", "2", "--codebook-size", "4", "--site", "normed"]
    for name in ("a.h5", "b.h5"):
        assert main(["init", "vit-tiny", str(tmp_path / name), *arguments]) == 0
    a, b = read_model(tmp_path / "a.h5"), read_model(tmp_path / "b.h5")
    assert (a.digest, a.codec.digest) == (b.digest, b.codec.digest)
    assert a.config.grid == (1, 6)
    assert a.codec.config == CodecConfig(site="normed", stages=2, codebook_size=4, encoder="exact")
    assert len(np.unique(a.codec.blocks[0].codebooks[0].entries[0], axis=0)) == 4
    assert a.preprocess["size"] == [16, 96]
    assert "4 bits per token" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "4"], "--groups is for --kind grouped"),
        (["--kind", "grouped", "--stages", "4"], "--stages is for --kind residual"),
        (["--kind", "tree"], "codec kind 'tree' is unknown"),
        (["--codebook-size", "0"], "codebook size 0 is outside"),
        (["--tokens", "0"], "--tokens 0"),
        (["--seed", "-1"], "--seed -1"),
    ],
)
def test_init_refuses(tmp_path, capsys, arguments, message):
    assert main(["init", "bert-tiny", str(tmp_path / "m.h5"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m.h5").exists()


def gpt2(**changes):
    config = dict(n_embd=12, n_head=2, n_layer=1, n_positions=9, vocab_size=11, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config | changes))


def llama(**changes):
    config = dict(hidden_size=12, num_attention_heads=3, num_key_value_heads=1, num_hidden_layers=1, vocab_size=11)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config | dict(intermediate_size=7) | changes))


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("tied", [True, False])
def test_decoders(tmp_path, make, tied):
    """All of the checkpoint is used, and comes back from the model file."""
    make(tie_word_embeddings=tied).save_pretrained(tmp_path)
    model, notes = convert(tmp_path)
    assert model.config.tied is tied and ("head.weight" in model.weights) is not tied
    assert notes == [note for note in notes if "tokenizer" in note]
    write_model(tmp_path / "model.h5", model)
    assert read_model(tmp_path / "model.h5").config == model.config


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (gpt2, dict(architectures=["GPT2ForTokenClassification"]), "GPT2ForTokenClassification.*GPT2LMHeadModel"),
        (llama, dict(architectures=["LlamaForSequenceClassification"]), "use one of LlamaForCausalLM, LlamaModel"),
        (gpt2, dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx = true"),
        (llama, dict(head_dim=6), "head_dim = 6 is not supported"),
        (
            llama,
            dict(rope_parameters=dict(rope_type="dynamic", rope_theta=1e4)),
            'rope_type "dynamic".*llama3',
        ),
    ],
)
def test_decoders_of_another_kind_are_named(tmp_path, make, changes, message):
    make().save_pretrained(tmp_path)
    edit(**changes)(tmp_path)
    with pytest.raises(InputError, match=message):
        convert(tmp_path)


def test_missing_and_unexpected_tensors_are_all_named(tmp_path):
    gpt2().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    extra = {f"extra.{i:02}": torch.zeros(1) for i in range(20)}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    (note, *_) = convert(tmp_path)[1]
    assert all(name in note for name in extra) and "in all" not in note
    inside = {f"transformer.h.0.extra.{i}": torch.zeros(1) for i in range(21)}
    save_file(tensors | inside, tmp_path / "model.safetensors")
    with pytest.raises(
        InputError, match=r"in its blocks .*h\.0\.extra\.0, .*, \.\.\. \(21 in all\) \(n_layer\); answers without"
    ):
        convert(tmp_path)
    gone = {"transformer.h.0.attn.c_attn.weight", "transformer.ln_f.bias"}
    save_file({name: a for name, a in tensors.items() if name not in gone}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"no tensor h\.0\.attn\.c_attn\.weight, ln_f\.bias, which"):
        convert(tmp_path)


def test_biases_that_the_config_does_not_know_are_refused(tmp_path):
    """As in checkpoints of relatives that call themselves Llama."""
    llama().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(12)}
    save_file(tensors | bias, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"config\.json does not ask for: model\.layers\.0\.self_attn\.q_proj"):
        convert(tmp_path)
