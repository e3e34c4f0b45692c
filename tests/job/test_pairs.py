"""`classify` and `rerank` of texts and of pairs of texts give what transformers and sentence-transformers give."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
import transformers
from differential_text_folders import FOLDERS
from sentence_transformers import CrossEncoder

from astra_mpi.cli import main
from astra_mpi.files.modelfile import read_model

PAIRS = [
    ("the quick dog", "a fox jumps over the lazy dog in Paris " * 4), ("hello world", "query: passage: document"),
    ("the quick dog", "don't you know? 12345"), ("hello world", "it's a dog's life"), ("the quick dog", "中文 日本語"),
]  # fmt: skip


def encoder(folder, n_classes, kind="Bert", **more):
    """A classifier of transformers with a tokenizer, in `folder`, every parameter moved."""
    FOLDERS["roberta" if kind == "Roberta" else "bert"](folder)
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=37, vocab_size=350)
    config = getattr(transformers, f"{kind}Config")(**sizes, max_position_embeddings=48, num_labels=n_classes, **more)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)


def run(folder, task, lines, *overrides):
    """-> exit code; results in out.h5 of the folder."""
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "deck.toml").write_text(
        f'[model]\npath = "m.h5"\n[input]\npath = "in.jsonl"\nkind = "text"\n[task]\nname = "{task}"\n'
        '[parallel]\nstrategy = "single"\n[run]\nresume = false\nbatch = 2\n[output]\npath = "out.h5"\n'
    )
    return main(["run", str(folder / "deck.toml"), *overrides])


def results(folder, name="out.h5"):
    with h5py.File(folder / name) as file:
        return {key: values[:] for key, values in file["outputs"].items()} | {"labels": file.attrs.get("labels")}


def converted(folder):
    assert main(["convert", str(folder / "hf"), str(folder / "m.h5")]) == 0


@pytest.mark.parametrize("activation", [None, "torch.nn.modules.linear.Identity"])
def test_rerank_is_that_of_a_cross_encoder(tmp_path, activation, capsys):
    more = {} if activation is None else {"sentence_transformers": {"activation_fn": activation}}
    encoder(tmp_path / "hf", 1, "Bert" if activation else "Roberta", **more)
    converted(tmp_path)
    theirs = CrossEncoder(str(tmp_path / "hf"), device="cpu")
    want = theirs.predict(PAIRS)
    lines = [list(pair) if i % 2 else dict(text=pair[0], text_pair=pair[1], more=3) for i, pair in enumerate(PAIRS)]
    assert run(tmp_path, "rerank", lines) == 0
    found = results(tmp_path)
    assert abs(found["score"] - want).max() < 1e-5
    assert found["query"].tolist() == [0, 1, 0, 1, 0]
    for query, text in enumerate(["the quick dog", "hello world"]):
        mine = [i for i, pair in enumerate(PAIRS) if pair[0] == text]
        order = [mine[row["corpus_id"]] for row in theirs.rank(text, [PAIRS[i][1] for i in mine])]
        assert sorted(mine, key=lambda i: found["rank"][i]) == order
        assert sorted(found["rank"][found["query"] == query]) == list(range(1, len(mine) + 1))
    for i in range(2):
        assert run(tmp_path, "rerank", lines, "--shard", f"{i}/2") == 0
    assert main(["merge", str(tmp_path / "all.h5"), *(str(tmp_path / f"out.{i}-of-2.h5") for i in range(2))]) == 0
    for name, values in results(tmp_path, "all.h5").items():
        assert values is None or np.allclose(values, found[name], atol=1e-6)
    capsys.readouterr()
    assert main(["info", str(tmp_path / "m.h5")]) == 0
    assert "usage.pairs" in capsys.readouterr().out


def test_classify_is_the_pipeline_of_transformers(tmp_path):
    names = {0: "contradiction", 1: "entailment", 2: "neutral"}
    encoder(tmp_path / "hf", 3, id2label=names)
    converted(tmp_path)
    assert read_model(tmp_path / "m.h5").config.labels == tuple(names.values())
    pipe = transformers.pipeline("text-classification", str(tmp_path / "hf"), top_k=None, device="cpu")
    items = [{"text": a, "text_pair": b} for a, b in PAIRS[1:]] + [{"text": PAIRS[0][1]}, {"text": "a dog"}]
    want = [pipe(item, truncation=True) for item in items]
    assert run(tmp_path, "classify", [item | {"n": 1} for item in items], "input.labels=n") == 0
    found = results(tmp_path)
    assert json.loads(found["labels"]) == list(names.values())
    for scores, shares, number in zip(want, found["probabilities"], found["class"], strict=True):
        assert scores[0]["label"] == names[number]
        told = {score["label"]: score["score"] for score in scores}
        assert abs(shares - [told[label] for label in names.values()]).max() < 1e-5
    summary = json.loads((tmp_path / "out.json").read_text())
    assert summary["metrics"]["accuracy"] == (found["class"] == 1).mean()


@pytest.mark.parametrize(
    ("task", "lines", "overrides", "message"),
    [
        ("rerank", [{"text": "a", "text_pair": "b"}], [], "with a classifier of 3 classes, whose own embeddings task"),
        ("embed", [{"text": "a"}], [], "give classify"),
        ("embed", [["a", "b"]], ["task.pooling=mean"], "line 1 is a pair of texts, which only task.name"),
        ("embed", [{"text": "a", "text_pair": "b"}], ["task.pooling=mean"], "(a sequence classifier or cross-enc"),
        ("embed", [{"text": "a"}], ["task.pooling=pooler"], "pooling 'pooler' is what its classifier takes"),
        ("embed", [{"text": "a"}], ["task.pooling=cls", "input.pair=x"], "input.pair is for input.kind = 'text'"),
        ("classify", [["a", "b", "c"]], [], "line 1: each line is one JSON object, this is list"),
        ("classify", [["a", 3]], [], "in.jsonl, line 1: 3 is not text"),
        ("classify", [{"text": "a"}], ["input.pair=other"], "no field 'other', only text; name one with"),
        ("classify", [["a", "b"]], ["input.max_tokens=4"], "max_tokens = 4 leaves no room beside 3 special"),
        ("classify", [["a", "b"]], ['input.dataset=["text", "x"]'], "texts of pairs come from one field"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(three, tmp_path, capsys, task, lines, overrides, message):
    shutil.copy(three, tmp_path / "m.h5")
    assert run(tmp_path, task, lines, *overrides) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A model file of three classes."""
    folder = tmp_path_factory.mktemp("three")
    encoder(folder / "hf", 3)
    converted(folder)
    return folder / "m.h5"
