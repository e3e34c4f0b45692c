"""The accuracy job: rows trained and measured at P ranks, kept, rendered; its intervals are paired ones."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from training import write_deck, write_images, write_small

JOBS = Path(__file__).parent.parent / "jobs"


@pytest.fixture(scope="module")
def job():
    """jobs/accuracy.py, which is no package's."""
    spec = importlib.util.spec_from_file_location("accuracy", JOBS / "accuracy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_are_measured_kept_and_rendered(job, tmp_path, monkeypatch, capsys):
    write_deck(tmp_path / "base.toml", write_small(tmp_path, "vit"), train_steps=3)
    write_images(tmp_path / "test.npz", 30, seed=9)
    (tmp_path / "table.toml").write_text("""
title = "a title"
base = "base.toml"
seeds = [0, 1]
ranks = [2, 3]
output = "out"
[task]
metric = "accuracy"
test = "test.npz"
[[rows]]
name = "exact"
set = ["codec.kind=none"]
[[rows]]
name = "naq"
at = [{ ranks = 2 }, { ranks = 3, weights = [3, 1, 1] }, { ranks = 3, loss = 1.0 }]
[[rows]]
name = "kmeans"
train = false
start = "exact"
""")
    monkeypatch.setattr("sys.argv", ["accuracy.py", "run", str(tmp_path / "table.toml")])
    assert job.main() == 0
    results = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out").glob("*.json")}
    assert set(results) == {f"{row}-{seed}" for row in ("exact", "naq", "kmeans") for seed in (0, 1)}
    naq, kmeans = results["naq-1"], results["kmeans-1"]
    assert [f["at"]["ranks"] for f in naq["figures"]] == [2, 3, 3] and naq["bits"] == 6 and naq["items"] == 30
    assert kmeans["steps"] == 0 and kmeans["own_exact"] == kmeans["exact"] == results["exact-1"]["own_exact"]
    low, high = naq["figures"][0]["difference"]
    assert low <= naq["figures"][0]["figure"] - naq["exact"] <= high
    monkeypatch.setattr("sys.argv", ["accuracy.py", "render", str(tmp_path / "out"), "-o", str(tmp_path / "a.md")])
    assert job.main() == 0
    text = (tmp_path / "a.md").read_text()
    assert "## a title" in text and "| naq (2) | 6 |" in text and "P = 3 100% missing" in text
    before = (tmp_path / "out" / "naq-1.json").stat().st_mtime_ns
    monkeypatch.setattr("sys.argv", ["accuracy.py", "run", str(tmp_path / "table.toml")])
    assert job.main() == 0 and (tmp_path / "out" / "naq-1.json").stat().st_mtime_ns == before


def test_figures_and_paired_intervals(job):
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
