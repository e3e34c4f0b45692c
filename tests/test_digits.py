"""The digits job: its model is the one that `transformers` computes, and classifies images it was not trained on."""

import importlib.util
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from astra_mpi.cli import main
from astra_mpi.files.modelfile import read_model
from astra_mpi.models.vision.vit import ViT

JOBS = Path(__file__).parent.parent / "jobs"


@pytest.fixture
def digits():
    """jobs/digits.py, which is no package's."""
    spec = importlib.util.spec_from_file_location("digits", JOBS / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_transformers(file, folder):
    """The model file as a model of `transformers`, read from a folder in its format."""
    from safetensors.numpy import save_file
    from transformers import ViTForImageClassification

    c = file.config
    settings = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": c.image_size[0]}
    settings |= {"hidden_size": c.d_model, "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads}
    settings |= {"intermediate_size": c.d_ff, "layer_norm_eps": c.norm_eps, "patch_size": c.patch_size}
    settings |= {"num_channels": c.channels, "id2label": {i: str(i) for i in range(c.n_classes)}}
    tensors = {}
    for name, source in ViT.hf_weights(c).items():
        array = np.asarray(file.weights[name])
        value = array.T if array.ndim == 2 and name != "embed.position" else array  # (in, out) -> (out, in)
        shape = {
            "embed.patch.weight": (c.d_model, c.channels, c.patch_size, c.patch_size),
            "embed.class": (1, 1, c.d_model),
            "embed.position": (1, *array.shape),
        }.get(name, value.shape)
        prefix = "" if name.startswith("head.") else "vit."
        tensors[prefix + source.name] = np.ascontiguousarray(value).reshape(shape)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors")
    model, info = ViTForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return model.eval()


def test_digits(digits, tmp_path, capsys):
    import torch

    digits.make(tmp_path)
    with np.load(tmp_path / "test.npz") as test, np.load(tmp_path / "train.npz") as train:
        images, labels = test["images"], test["labels"]
        assert len(images) == 360 and len(train["images"]) == 1437
        assert images.shape[1:] == (8, 8) and images.dtype == np.uint8 and images.max() == 255
    file = read_model(JOBS / "models" / "digits.h5")
    mean, std = (np.float32(file.preprocess[name][0]) for name in ("mean", "std"))
    with torch.no_grad():
        pixels = torch.from_numpy((images[:, None] / np.float32(255) - mean) / std)
        want = as_transformers(file, tmp_path / "vit")(pixels).logits.numpy()

    for strategy in ("sp", "astra"):  # the comparison needs two results; on one rank both are exact
        paths = [f"input.path={tmp_path}/test.npz", f"output.path={tmp_path}/{strategy}.out.h5"]
        assert main(["run", str(JOBS / "digits.toml"), *paths, f"parallel.strategy={strategy}"]) == 0
    with h5py.File(tmp_path / "sp.out.h5") as results:
        np.testing.assert_allclose(results["outputs/logits"], want, rtol=0, atol=2e-3)
    accuracy = json.loads((tmp_path / "sp.out.json").read_text())["metrics"]["accuracy"]
    assert accuracy > 0.95 and abs(accuracy - np.mean(want.argmax(axis=1) == labels)) <= 2 / len(labels)

    capsys.readouterr()
    digits.compare(tmp_path)
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last == ["same", "class", "as", "exact", "100%", "100.0%"]
