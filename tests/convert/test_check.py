"""convert --check: sound conversions of every family pass, faults of a conversion are found, and leave no file."""

import dataclasses
import errno
import json
import os
import sys

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from astra_mpi.cli import main
from astra_mpi.convert import hugging_face as convert_module
from astra_mpi.convert.check.findings import CEILING, FLOOR, Finding, held_against, tolerance
from astra_mpi.convert.check.reference import round_weights
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import read_model
from helpers.checkpoints import VISION, save_random
from helpers.llama2c import write_checkpoint

SIZES = dict(hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=40)
IMAGES = {"size": {"height": 8, "width": 12}, "image_mean": [0.4], "image_std": [0.2], "resample": 3}


def spread(model):
    """Weights as large as trained ones, so that activations and norms are not all but linear; always the same."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        start = weight.mean() if weight.ndim == 1 else 0.0
        weight.data = start + 0.3 * torch.randn(weight.shape, generator=generator)
    return model


def words(folder):
    """A WordPiece tokenizer of letters, lower-casing."""
    letters = "abcdefghijklmnopqrstuvwxyz.,'?!0123456789"
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", *letters, *(f"##{c}" for c in letters[:26])]
    fast = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocab)}, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    options = dict(tokenizer_object=fast, model_max_length=90, **names)
    transformers.PreTrainedTokenizerFast(**options).save_pretrained(folder)


def bytes_tokenizer(folder):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=fast).save_pretrained(folder)


def bert(folder, **changes):
    config = transformers.BertConfig(**SIZES | dict(vocab_size=80, max_position_embeddings=200) | changes)
    spread(transformers.BertModel(config)).save_pretrained(folder)
    words(folder)


def vit(folder):
    classes = {0: "cat", 1: "dog", 2: "gnu"}
    config = transformers.ViTConfig(**SIZES, image_size=(8, 12), patch_size=4, num_channels=1, id2label=classes)
    spread(transformers.ViTForImageClassification(config)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES))


def gpt2(folder):
    config = dict(n_embd=24, n_head=3, n_layer=2, n_positions=200, vocab_size=300, bos_token_id=0, eos_token_id=0)
    spread(transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))).save_pretrained(folder)
    bytes_tokenizer(folder)


def llama(folder):
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = transformers.LlamaConfig(
        **SIZES,
        num_key_value_heads=1,
        vocab_size=300,
        max_position_embeddings=5000,
        rope_parameters=rope | {"original_max_position_embeddings": 32},
    )
    spread(transformers.LlamaForCausalLM(config)).save_pretrained(folder)
    bytes_tokenizer(folder)


FAMILIES = {make.__name__: make for make in (bert, vit, gpt2, llama)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder per family, as the libraries save them; nobody changes them."""
    made = {}
    for name, make in FAMILIES.items():
        made[name] = tmp_path_factory.mktemp(name)
        make(made[name])
    return made


def check(source, out, *options):
    return main(["convert", str(source), str(out), "--check", *options])


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("bert", ["hidden states of 5 seq", "embeddings, mean: largest", "ids of 20 texts by AutoTokenizer: equal"]),
        ("vit", ["hidden states of 2 random images", "logits: larg", "names of classes: equal", "4 uint8 images by"]),
        ("gpt2", ["logits after each of 5", "16 tokens: equal", "ids of 20 texts", "texts of 28 rows of ids: equal"]),
        ("llama", ["logits after each of 5", "16 tokens: equal", "ids of 20 texts", "texts of 28 rows of ids: equal"]),
    ],
)
def test_sound_conversions_pass(folders, tmp_path, capsys, family, told):
    assert check(folders[family], tmp_path / "m.h5") == 0
    out = capsys.readouterr().out
    assert all(line in out for line in told) and "DIFFERENT" not in out
    assert read_model(tmp_path / "m.h5").config.family == family
    assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_narrow_storage_is_held_against_the_reference_with_as_narrow_weights(folders, tmp_path, capsys, family, dtype):
    assert check(folders[family], tmp_path / "m.h5", "--dtype", dtype) == 0
    assert f"the reference with its weights in {dtype} instead of float32: changes by" in capsys.readouterr().out


def test_rounding_of_the_reference_is_that_of_torch():
    """int8: at most half a step of each output's own scale, and 127 steps are its largest weight."""
    linear = torch.nn.Linear(50, 7)
    before = linear.weight.detach().clone()
    model = torch.nn.Module()
    model.linear, model.get_input_embeddings = linear, lambda: None
    round_weights(model, "int8")
    step = before.abs().amax(1, keepdim=True) / 127
    assert ((linear.weight - before).abs() <= 0.501 * step).all() and (linear.weight != before).any()
    assert torch.allclose(linear.weight.abs().amax(1), before.abs().amax(1))


def other_config(**changes):
    return lambda model: dataclasses.replace(model, config=dataclasses.replace(model.config, **changes))


def other_weight(name, change):
    def fault(model):
        weights = {key: np.array(model.weights[key]) for key in model.weights}
        change(weights[name], weights)
        return dataclasses.replace(model, weights=weights)

    return fault


def exchange(a, b):
    def change(weight, weights):
        weights[a], weights[b] = weights[b], weights[a]

    return other_weight(a, change)


def last_position(weight, weights):
    weight[-1, 0] += 0.1


def other_preprocess(**changes):
    return lambda model: dataclasses.replace(model, preprocess=model.preprocess | changes)


def other_tokenizer(part, **changes):
    def fault(model):
        tokenizer = json.loads(model.tokenizer)
        tokenizer[part] |= changes
        return dataclasses.replace(model, tokenizer=json.dumps(tokenizer))

    return fault


FAULTS = [
    pytest.param("bert", other_config(norm_eps=1e-5), "hidden states", id="epsilon"),
    pytest.param("bert", other_config(activation="gelu_tanh"), "hidden states", id="activation"),
    pytest.param("bert", other_weight("embed.position", last_position), "hidden states", id="last-position"),
    pytest.param("bert", other_tokenizer("normalizer", lowercase=False), "token ids", id="case"),
    pytest.param("bert", other_preprocess(max_tokens=80), "token ids", id="length"),
    pytest.param("vit", exchange("blocks.1.norm1.bias", "blocks.1.norm2.bias"), "hidden states", id="norms"),
    pytest.param("vit", other_config(labels=("cat", "gnu", "dog")), "names of classes", id="labels"),
    pytest.param("vit", other_preprocess(mean=[0.5]), "uint8 images", id="mean"),
    pytest.param("vit", other_preprocess(resample=2), "uint8 images", id="resample"),
    pytest.param("gpt2", exchange("blocks.0.q.weight", "blocks.0.k.weight"), "logits", id="queries-keys"),
    pytest.param("gpt2", other_tokenizer("pre_tokenizer", add_prefix_space=True), "token ids", id="space"),
    pytest.param("llama", other_config(rope_factor=4.0), "logits", id="rope"),
    pytest.param("llama", other_config(rope_trained_positions=64), "logits", id="rope-positions"),
    pytest.param("llama", other_tokenizer("decoder", type="Fuse"), "texts", id="back"),
]


@pytest.mark.parametrize(("family", "fault", "told"), FAULTS)
def test_faults_are_found_and_leave_no_file(folders, tmp_path, capsys, monkeypatch, family, fault, told):
    sound = convert_module.convert

    def faulty(*arguments):
        model, notes = sound(*arguments)
        return fault(model), notes

    monkeypatch.setattr(convert_module, "convert", faulty)
    out = tmp_path / "m.h5"
    out.write_bytes(b"an older file")
    assert check(folders[family], out) == 4
    printed = capsys.readouterr()
    assert any(line.startswith(f"check: {told}") or told in line for line in printed.out.splitlines() if "DIFF" in line)
    assert f"{out} is not written, for it gives other answers than {folders[family]}" in printed.err
    assert out.read_bytes() == b"an older file" and len(list(tmp_path.iterdir())) == 1


def test_the_checked_file_takes_its_place_as_others_do(folders, tmp_path, capsys, monkeypatch):
    """Behind a link, with the older file's permissions; a failure is one sentence."""
    assert main(["convert", str(folders["vit"]), str(tmp_path / "old.h5")]) == 0
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / "elsewhere" / "m.h5"
    out.write_bytes(b"old")
    out.chmod(0o640)
    (tmp_path / "m.h5").symlink_to(out)
    assert check(tmp_path / "old.h5", tmp_path / "m.h5") == 0
    assert (tmp_path / "m.h5").is_symlink() and read_model(out).config.family == "vit"
    assert out.stat().st_mode & 0o777 == 0o640 and [path.name for path in out.parent.iterdir()] == ["m.h5"]
    before, replace = out.read_bytes(), os.replace

    def fails(source, target):
        if str(source).endswith(".checked"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    assert check(tmp_path / "old.h5", tmp_path / "m.h5", "--dtype", "int8") == 3
    assert f"error: {tmp_path / 'm.h5'} cannot be written (Input/output error); " in capsys.readouterr().err
    assert out.read_bytes() == before and len(list(out.parent.iterdir())) == 1


def test_a_continuation_that_is_not_the_references(folders, tmp_path, capsys, monkeypatch):
    generate = Model.generate
    monkeypatch.setattr(Model, "generate", lambda *a, **k: (generate(*a, **k) + 1) % 300)
    assert check(folders["gpt2"], tmp_path / "m.h5") == 4
    assert "greedy continuation of 8 random tokens, 16 tokens: DIFFERENT, token 0 is" in capsys.readouterr().out


def sentences(folder, *normalize, **settings):
    """A folder of sentence-transformers; settings: of sentence_bert_config.json."""
    bert(folder)
    kinds = ["Transformer", "Pooling", *normalize]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}"} for i, kind in enumerate(kinds)]
    modules = [{"idx": i, "name": str(i), **module} for i, module in enumerate(modules)]
    modules[0]["path"] = ""
    (folder / "modules.json").write_text(json.dumps(modules))
    for i, kind in enumerate(kinds[1:], 1):
        (folder / f"{i}_{kind}").mkdir()
    pooling = {"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    settings = {"max_seq_length": 40, "do_lower_case": False} | settings
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("normalize", [[], ["Normalize"]])
def test_sentence_transformers(tmp_path, capsys, normalize):
    """From characters to embedding, by that library; it reads the folder's own pooling and longest text."""
    pytest.importorskip("sentence_transformers")
    sentences(tmp_path, *normalize)
    assert check(tmp_path, tmp_path / "m.h5", "--dtype", "bfloat16") == 0
    out = capsys.readouterr().out
    assert "embeddings, cls" in out and "SentenceTransformer.encode of 20 texts: largest difference" in out


def test_without_sentence_transformers_the_tokens_are_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    sentences(tmp_path)
    assert check(tmp_path, tmp_path / "m.h5") == 0
    out = capsys.readouterr().out
    assert "embeddings of texts: NOT COMPARED, for sentence-transformers is not installed (pip install 'sent" in out
    assert "token ids of 20 texts by AutoTokenizer: equal" in out
    sound = convert_module.convert
    fault = other_preprocess(max_tokens=39)
    monkeypatch.setattr(convert_module, "convert", lambda *a: (fault(sound(*a)[0]), []))
    assert check(tmp_path, tmp_path / "m.h5") == 4
    assert "token ids of 20 texts by AutoTokenizer" in capsys.readouterr().err


def test_without_sentence_transformers_what_changes_texts_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    sentences(tmp_path, do_lower_case=True)
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert check(tmp_path, tmp_path / "m.h5") == 0
    told = "token ids of texts: NOT COMPARED, for the sentence settings have a default prompt, do_lower_case"
    assert told in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "torch", None)
    assert check(tmp_path, tmp_path / "m.h5") == 2
    assert "pip install torch 'transformers>=5' 'sentence-transformers>=6'" in capsys.readouterr().err


def test_llama2c(tmp_path, capsys, monkeypatch):
    write_checkpoint(tmp_path / "model.bin", shared=False)
    assert check(tmp_path / "model.bin", tmp_path / "m.h5") == 0
    assert "transformers does not read tokenizers of llama2.c" in capsys.readouterr().out
    monkeypatch.setattr("astra_mpi.convert.llama2c._halves", lambda weight, d_head: weight)
    assert check(tmp_path / "model.bin", tmp_path / "m.h5") == 4
    assert "logits after each of 5 sequences" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_model_files(folders, tmp_path, capsys, monkeypatch, dtype):
    assert main(["convert", str(folders["llama"]), str(tmp_path / "old.h5")]) == 0
    assert check(tmp_path / "old.h5", tmp_path / "new.h5", "--dtype", dtype) == 0
    assert "as rounding explains" in capsys.readouterr().out or dtype == "float32"
    wrong = other_weight("blocks.1.k.weight", lambda weight, weights: np.multiply(weight, 1.02, out=weight))
    sound = convert_module.restore
    monkeypatch.setattr(convert_module, "restore", lambda *a: (wrong(sound(*a)[0]), []))
    assert check(tmp_path / "old.h5", tmp_path / "other.h5", "--dtype", dtype) == 4
    assert "blocks.1.k.weight is off by" in capsys.readouterr().err and not (tmp_path / "other.h5").exists()


@pytest.mark.parametrize("name", ["transformers", "torch"])
def test_without_the_libraries(folders, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    assert check(folders["bert"], tmp_path / "m.h5") == 2
    assert f"({name} is missing); pip install torch 'transformers" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "reader", "told"),
    [
        ("bert", "transformers.AutoModel.from_pretrained", "transformers cannot read {} (KeyError: 'an"),
        ("bert", "transformers.AutoTokenizer.from_pretrained", "transformers cannot read the tokenizer of {} (Key"),
        ("vit", "transformers.AutoImageProcessor.from_pretrained", "cannot read the image processor of {} (Key"),
        ("sentences", "sentence_transformers.SentenceTransformer.__init__", "sentence-transformers cannot read {} (K"),
    ],
)
def test_what_the_reference_cannot_read_is_not_passed(folders, tmp_path, capsys, monkeypatch, family, reader, told):
    def fails(*_, **__):
        raise KeyError("an odd\nmessage")

    folder = folders[family] if family in folders else tmp_path / "hf"
    if family == "sentences":
        pytest.importorskip("sentence_transformers")
        sentences(folder)
    monkeypatch.setattr(reader, fails)
    out = tmp_path / "made" / "m.h5"
    out.parent.mkdir()
    assert check(folder, out) == 2
    error = capsys.readouterr().err
    assert told.format(folder) in error and "convert without --check" in error and not list(out.parent.iterdir())


def test_tolerance():
    assert (tolerance(0), tolerance(1e-6), tolerance(1)) == (FLOOR, 1.6e-5, CEILING)
    assert not held_against("x", np.array([np.nan]), np.array([1.0]), 1).passed
    assert not held_against("x", np.ones(3), np.ones(4), 1).passed
    assert held_against("x", np.array([1.0, 2.00001]), np.array([1.0, 2.0]), 1e-5).passed
    assert not held_against("x", np.array([1.0, 2.00003]), np.array([1.0, 2.0]), 1e-5).passed
    assert str(Finding("x", wrong="y")) == "x: DIFFERENT, y"


@pytest.mark.parametrize(
    ("case", "dtype", "processor", "crop"),
    [
        ("dinov2-registers", "bfloat16", "BitImageProcessor", (20, 25)),  # layer scales, positions of another size
        ("dinov2", "float32", "BitImageProcessor", (13, 12)),
        ("siglip", "int8", "SiglipImageProcessor", (11, 11)),
        ("deit", "float16", "DeiTImageProcessor", (6, 6)),
        ("clip", "int8", "CLIPImageProcessor", (11, 11)),
    ],
)
def test_image_encoders(tmp_path, capsys, case, dtype, processor, crop):
    kind, config = VISION[case]
    save_random(tmp_path / "hf", kind, config)
    channels = (config | config.get("vision_config", {}))["num_channels"]
    settings = {"image_processor_type": processor, "size": {"shortest_edge": 17}, "do_center_crop": True}
    settings |= {"crop_size": dict(zip(("height", "width"), crop, strict=True)), "default_to_square": False}
    settings |= {"image_mean": [0.4] * channels, "image_std": [0.2] * channels}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(settings))
    out = tmp_path / "m.h5"
    assert check(tmp_path / "hf", out, "--dtype", dtype) == 0
    told = capsys.readouterr().out
    assert "hidden states" in told and "embeddings" in told and "uint8 images by AutoImageProcessor" in told
    model = read_model(out)
    assert model.config.image_size == crop and tuple(model.preprocess["size"]) == crop
