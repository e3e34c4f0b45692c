"""The digits job: its folder is one that `transformers` reads, and its deck gives the classes `transformers` gives."""

import importlib.util
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from astra_mpi.cli import main

JOBS = Path(__file__).parent.parent / "jobs"


@pytest.fixture
def digits():
    """jobs/digits.py, which is no package's."""
    spec = importlib.util.spec_from_file_location("digits", JOBS / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_digits(digits, tmp_path, capsys):
    import torch
    from transformers import ViTForImageClassification

    digits.make(tmp_path)
    assert "randomly initialised" in capsys.readouterr().out
    with np.load(tmp_path / "digits.npz") as file:
        images, labels = file["images"], file["labels"]
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8 and images.max() == 255
    model, info = ViTForImageClassification.from_pretrained(tmp_path / "vit", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        want = model(torch.from_numpy(images[:, None] / np.float32(127.5) - 1)).logits.numpy()

    assert main(["convert", str(tmp_path / "vit"), str(tmp_path / "model.h5")]) == 0
    paths = [f"model.path={tmp_path}/model.h5", f"input.path={tmp_path}/digits.npz"]
    for strategy in ("sp", "astra"):  # the comparison needs two results; without codebooks both are exact
        out = f"output.path={tmp_path}/{strategy}.out.h5"
        assert main(["run", str(JOBS / "digits.toml"), *paths, "parallel.strategy=single", out]) == 0
    with h5py.File(tmp_path / "sp.out.h5") as file:
        np.testing.assert_allclose(file["outputs/logits"], want, rtol=0, atol=1e-4)
    accuracy = json.loads((tmp_path / "sp.out.json").read_text())["metrics"]["accuracy"]
    assert abs(accuracy - np.mean(want.argmax(axis=1) == labels)) <= 2 / len(labels)  # near-ties may flip

    capsys.readouterr()
    digits.compare(tmp_path)
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last == ["same", "class", "as", "exact", "100%", "100.0%"]
