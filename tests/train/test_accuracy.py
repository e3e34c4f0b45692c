"""The accuracy job: rows trained and measured at P ranks, kept, rendered; its intervals are paired ones."""

import json

import numpy as np
import pytest
import run as job
import torch
from plot import kind_of, label, lost
from rivals import rival

from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.train.twin import Twin
from helpers.fakes import bert_config, gpt2_config, model_file, vit_config
from helpers.training import write_deck, write_images, write_small


def test_rows_are_measured_kept_and_rendered(tmp_path, monkeypatch, capsys):
    write_deck(tmp_path / "base.toml", write_small(tmp_path, "vit"), train_steps=3)
    write_images(tmp_path / "test.npz", 30, seed=9)
    write_images(tmp_path / "other.npz", 20, seed=8)
    (tmp_path / "table.toml").write_text("""
title = "a title"
base = "base.toml"
seeds = [0, 1]
ranks = [2, 3]
output = "out"
[task]
metric = "accuracy"
test = "test.npz"
tests = { other = "other.npz" }
[[rows]]
name = "exact"
set = ["codec.kind=none"]
[[rows]]
name = "naq"
at = [{ ranks = 4 }, { ranks = 3, weights = [3, 1, 1] }, { ranks = 3, loss = 1.0 }, { ranks = 2, test = "other" },
  { ranks = 2, first = "inputs" }]
[[rows]]
name = "kmeans"
train = false
start = "exact"
[[rows]]
name = "means"
rival = "means:2"
start = "exact"
""")
    monkeypatch.setattr("sys.argv", ["accuracy.py", "run", str(tmp_path / "table.toml")])
    assert job.main() == 0
    results = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out").glob("*.json")}
    assert set(results) == {f"{row}-{seed}" for row in ("exact", "naq", "kmeans", "means") for seed in (0, 1)}
    naq, kmeans = results["naq-1"], results["kmeans-1"]
    assert [f["at"]["ranks"] for f in naq["figures"]] == [4, 3, 3, 2, 2] and naq["bits"] == 6 and naq["items"] == 30
    assert kmeans["steps"] == 0 and kmeans["own_exact"] == kmeans["exact"] == results["exact-1"]["own_exact"]
    low, high = naq["figures"][0]["difference"]
    assert low <= naq["figures"][0]["figure"] - naq["exact"] <= high
    shown = ["-o", str(tmp_path / "a.md"), "--plot", str(tmp_path / "a.svg")]
    monkeypatch.setattr("sys.argv", ["accuracy.py", "render", str(tmp_path / "out"), *shown])
    assert job.main() == 0
    assert "</svg>" in (tmp_path / "a.svg").read_text()
    text = (tmp_path / "a.md").read_text()
    assert "## a title" in text and "| naq (2) | 6 |" in text
    assert "P = 3 100% missing" in text and "P = 2 on other" in text
    assert "P = 2 first block from inputs" in text
    assert results["means-0"]["bits"] == 32 * results["means-0"]["width"] / 2 and "| means (2) |" in text
    before = (tmp_path / "out" / "naq-1.json").stat().st_mtime_ns
    monkeypatch.setattr("sys.argv", ["accuracy.py", "run", str(tmp_path / "table.toml")])
    assert job.main() == 0 and (tmp_path / "out" / "naq-1.json").stat().st_mtime_ns == before
    monkeypatch.setattr("sys.argv", ["accuracy.py", "run", str(tmp_path / "table.toml"), "--rows", "exact,nq"])
    assert job.main() == 2
    assert "has no row 'nq'; it has exact, naq, kmeans, means" in capsys.readouterr().err


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["int8", "means:1", "means:3"])
@pytest.mark.parametrize("family", ["vit", "bert", "gpt2"])
def test_rivals_are_those_of_the_engine(comm, family, name):
    config = {"vit": vit_config, "bert": bert_config, "gpt2": gpt2_config}[family]()
    file = model_file(config, None, seed=3)
    model = Model(file, comm, get_backend("numpy", comm))
    model.use({"int8": "sp:int8", "means:1": "segment_means:1", "means:3": "segment_means:3"}[name])
    inputs, mask = random_batch(config, 3, None if family == "vit" else 17, seed=1, ragged=True)
    answer = model(inputs, mask)
    if mask is None:
        mask = np.ones((len(inputs), 1 + config.grid[0] * config.grid[1] if family == "vit" else inputs.shape[1]), bool)
    twin = Twin(config, file.weights)
    found = job.with_rival(twin, name, torch.from_numpy(inputs), mask, comm.Get_size()).numpy()
    if twin.causal:
        found = found[np.arange(len(found)), mask.sum(axis=1) - 1]
    if answer is not None:
        np.testing.assert_allclose(found, answer, atol=1e-4 * np.abs(answer).max())


def test_what_the_picture_shows():
    perplexity = {"metric": "perplexity", "exact": 20.0, "codec": None, "steps": 0, "says": "sp:int8, exact"}
    result = perplexity | {"figures": [{"at": {"ranks": 2}, "figure": 30.0}, {"at": {"ranks": 4}, "figure": 21.0}]}
    assert lost(result) == pytest.approx(5) and kind_of(result) == "no codes" and label(result) == "sp:int8"
    assert lost(perplexity | {"figures": []}) is None
    codec = {"kind": "grouped", "groups": 16, "stages": 1, "codebook_size": 1024}
    trained = {"metric": "accuracy", "exact": 0.5, "codec": codec, "steps": 9, "learn": "codebooks"}
    assert lost(trained | {"figures": [{"at": {"ranks": 4}, "figure": 0.49}]}) == pytest.approx(2)
    kmeans = trained | {"steps": 0, "metric_of_codes": "keys-values", "codec": codec | {"groups": 1}}
    assert kind_of(trained) == "codebooks alone" and kind_of(kmeans) == "k-means"
    assert kind_of(kmeans | {"codec": codec}) == "k-means, by distance"  # several groups have no metric
    assert kind_of(kmeans | {"metric_of_codes": "plain"}) == "k-means, by distance"
    assert kind_of(trained | {"learn": "all"}) == "trained" and label(trained) == "G=16 K=1024"


def test_a_rival_that_is_none():
    for text in ("means", "means:x", "int8:2", "float8"):
        with pytest.raises(InputError, match="int8 or means:RATIO"):
            rival(text)


def test_figures_and_paired_intervals():
    rng = np.random.default_rng(0)
    exact = (rng.random((400, 1)) < 0.9).astype(float)
    worse = exact.copy()
    worse[:40] = 0
    low, high = job.paired("accuracy", worse, exact)
    assert low < job.figure("accuracy", worse) - job.figure("accuracy", exact) < high < 0
    assert job.paired("accuracy", exact, exact) == [0, 0]  # the same cases are resampled
    losses = np.stack([rng.random(50) * 9, np.full(50, 3.0)], axis=1)
    assert job.figure("perplexity", losses) == pytest.approx(np.exp(losses[:, 0].sum() / 150))
    assert job.paired("perplexity", losses, losses) == [1, 1]
    cosines = np.stack([np.arange(9.0) ** 2, np.arange(9.0)], axis=1)
    assert job.figure("spearman", cosines) == pytest.approx(1)
