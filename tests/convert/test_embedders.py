"""Folders of sentence-transformers whose Transformer is not BERT: the embeddings of `SentenceTransformer.encode`."""

import json

import h5py
import pytest
import torch
import transformers
from differential_text_folders import FOLDERS, put
from sentence_transformers import SentenceTransformer

from astra_mpi.cli import main
from astra_mpi.convert.hugging_face import convert
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import read_model
from helpers.checkpoints import ATOL

WIDTH = 24
SIZES = dict(hidden_size=WIDTH, num_attention_heads=6, num_hidden_layers=3, intermediate_size=37, vocab_size=500)
SIZES |= dict(max_position_embeddings=60)
GROUPED = dict(num_key_value_heads=2, head_dim=6, pad_token_id=0, bos_token_id=1, eos_token_id=2)
MARKS = dict(pad_token_id=0, cls_token_id=1, bos_token_id=1, eos_token_id=2, sep_token_id=2)
GEMMA = GROUPED | dict(
    query_pre_attn_scalar=5, sliding_window=9, layer_types=["sliding_attention"] * 2 + ["full_attention"]
)
DENSE = [(WIDTH, 31, "torch.nn.modules.linear.Identity", False), (31, 13, "torch.nn.modules.activation.Tanh", True)]
#: model of transformers, settings, folder of a tokenizer, pooling, Dense modules (inputs, outputs, activation, bias)
EMBEDDERS = {
    "qwen3": ("Qwen3Model", GROUPED, "llama-qwen2", "lasttoken", []),
    "qwen2": ("Qwen2ForCausalLM", GROUPED | {"head_dim": 4, "tie_word_embeddings": False}, "llama-qwen2", "mean", []),
    "gemma": ("Gemma3TextModel", GEMMA | dict(use_bidirectional_attention=True), "gemma", "mean", DENSE),
    "gemma-causal": ("Gemma3TextModel", GEMMA, "llama", "lasttoken", DENSE[:1]),
    "nomic": ("NomicBertModel", {}, "bert", "mean", []),
    "modernbert": ("ModernBertModel", MARKS | dict(local_attention=6), "bert-backend", "cls", DENSE),
    "mpnet": ("MPNetModel", {}, "mpnet", "mean", []),
    "xlm-roberta": ("XLMRobertaModel", dict(type_vocab_size=1), "xlm-roberta", "cls", []),
    "distilbert": ("DistilBertModel", {}, "distilbert", "mean", [(WIDTH, 40, DENSE[1][2], True)]),
}  # fmt: skip
#: normalised at the end, and cut
LAST = ("qwen3", "gemma")
TEXTS = [
    "Paris is a city",
    "the dog",
    "Café GRÖSSE hello world 12345",
    "the quick brown fox jumps over the lazy dog " * 2,
]


def made(folder, name):
    """A folder of sentence-transformers, every parameter moved."""
    kind, more, tokenizer, pooling, dense = EMBEDDERS[name]
    FOLDERS[tokenizer](folder)
    if tokenizer == "llama":  # which has none to pad with
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        put(folder / "tokenizer_config.json", settings | {"pad_token": "<unk>"})
    torch.manual_seed(0)
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**renamed(kind, SIZES | more)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    modules = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        *((f"{i}_Dense", "Dense") for i in range(2, 2 + len(dense))),
    ]
    modules += [("9_Normalize", "Normalize")] * (name in LAST)
    types = [{"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{t}"}
             for i, (p, t) in enumerate(modules)]  # fmt: skip
    put(folder / "modules.json", types)
    put(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, "pooling_mode": pooling})
    for i, (n_in, n_out, act, bias) in enumerate(dense, 2):
        layer = torch.nn.Linear(n_in, n_out, bias=bias)
        torch.nn.init.normal_(layer.weight, std=0.3)
        settings = {"in_features": n_in, "out_features": n_out, "bias": bias, "activation_function": act}
        put(folder / f"{i}_Dense" / "config.json", settings)
        tensors = {f"linear.{key}": value.contiguous() for key, value in layer.state_dict().items()}
        from safetensors.torch import save_file

        save_file(tensors, folder / f"{i}_Dense" / "model.safetensors")
    (folder / "9_Normalize").mkdir(exist_ok=True)
    put(folder / "sentence_bert_config.json", {"max_seq_length": 30, "do_lower_case": False})
    settings = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}
    put(folder / "config_sentence_transformers.json", settings | ({"truncate_dim": 7} if name in LAST else {}))


def renamed(kind, sizes):
    """DistilBERT's own keys."""
    if not kind.startswith("DistilBert"):
        return sizes
    names = dict(
        hidden_size="dim", num_attention_heads="n_heads", num_hidden_layers="n_layers", intermediate_size="hidden_dim"
    )
    return {names.get(key, key): value for key, value in sizes.items()}


def ours(folder, *overrides):
    (folder / "in.txt").write_text("\n".join(TEXTS) + "\n")
    (folder / "deck.toml").write_text(
        '[model]\npath = "m.h5"\n[input]\npath = "in.txt"\nkind = "text"\n[task]\nname = "embed"\n'
        '[parallel]\nstrategy = "single"\n[run]\nresume = false\n[output]\npath = "out.h5"\n'
    )
    assert main(["run", str(folder / "deck.toml"), *overrides]) == 0
    with h5py.File(folder / "out.h5") as file:
        return file["outputs/embedding"][:]


@pytest.mark.parametrize("name", EMBEDDERS)
def test_embeddings(name, tmp_path):
    made(tmp_path / "hf", name)
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "m.h5")]) == 0
    theirs = SentenceTransformer(str(tmp_path / "hf"), device="cpu")
    for overrides, options in (([], {}), (["task.prompt=document"], {"prompt_name": "document"})):
        want, got = theirs.encode(TEXTS, **options), ours(tmp_path, *overrides)
        assert got.shape == want.shape
        assert abs(got - want).max() < ATOL * max(1, abs(want).max())


def test_checked_conversions(tmp_path, capsys):
    for name in ("gemma", "mpnet"):
        made(tmp_path / name, name)
        assert main(["convert", str(tmp_path / name), str(tmp_path / f"{name}.h5"), "--check"]) == 0
        assert "DIFFERENT" not in capsys.readouterr().out
    assert read_model(tmp_path / "gemma.h5").config.dense_widths == (31, 13)


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        (
            "2_Dense/config.json",
            {"in_features": 24, "out_features": 31, "activation_function": "my.Act"},
            "only Tanh, Id",
        ),
        (
            "2_Dense/config.json",
            {"in_features": 23, "out_features": 31},
            "in_features = 23, and it is given 24 numbers",
        ),
        ("3_Dense/config.json", {"in_features": 31, "out_features": 9}, "which config.json contradicts"),
        (
            "2_Dense/config.json",
            {"in_features": 24, "out_features": 31, "use_residual": True},
            "use_residual is not supp",
        ),
        (
            "1_Pooling/config.json",
            {"word_embedding_dimension": 24, "pooling_mode": "max"},
            "only mean, cls and lasttoken",
        ),
    ],
)
def test_what_is_refused(folder, file, value, message):
    before = (folder / file).read_text()
    put(folder / file, value)
    try:
        with pytest.raises(InputError, match=message):
            convert(folder)
    finally:
        (folder / file).write_text(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedder") / "hf"
    made(folder, "gemma")
    return folder
