"""The classify job's data, a model for it, and its results side by side.

python jobs/digits.py make FOLDER     scikit-learn's 1,797 digits as digits.npz, a random Hugging Face ViT as vit/
python jobs/digits.py compare FOLDER  accuracy of sp.out.h5 and astra.out.h5, and how often their classes agree
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import h5py
import numpy as np

RANDOM_MODEL = """\
NOTE: the model is randomly initialised. Its classes mean nothing and its accuracy is about chance (10%) until this
project ships a trained one. What counts here is how often astra gives the class that the exact computation gives."""
IMAGE, PATCH, WIDTH, HEADS, BLOCKS, INNER, CLASSES = 8, 2, 64, 4, 4, 128, 10
HALF = [0.5]  # mean and standard deviation of the one channel: pixels become -1..1


def write_digits(path: Path) -> None:
    """images (1797, 8, 8) uint8 grey, labels (1797,) int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez(path, images=np.round(digits.images * (255 / 16)).astype(np.uint8), labels=digits.target)


def write_random_vit(folder: Path) -> None:
    """config.json, preprocessor_config.json and model.safetensors, named and shaped as `transformers` saves them."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    config = {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "image_size": IMAGE,
        "patch_size": PATCH,
        "num_channels": 1,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": BLOCKS,
        "intermediate_size": INNER,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "qkv_bias": True,
        "id2label": {i: str(i) for i in range(CLASSES)},
    }
    preprocess = {"size": {"height": IMAGE, "width": IMAGE}, "image_mean": HALF, "image_std": HALF}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocess, indent=2))
    save_file(random_tensors(np.random.default_rng(0)), folder / "model.safetensors")


def random_tensors(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights N(0, 1 / inputs), so that answers depend on the image; biases 0, norms 1."""
    tensors = {
        "vit.embeddings.cls_token": rng.normal(size=(1, 1, WIDTH)),
        "vit.embeddings.position_embeddings": rng.normal(size=(1, 1 + (IMAGE // PATCH) ** 2, WIDTH)),
    }

    def linear(name: str, *shape: int) -> None:
        fan_in = int(np.prod(shape[1:]))
        tensors[f"{name}.weight"] = rng.normal(0, fan_in**-0.5, shape)
        tensors[f"{name}.bias"] = np.zeros(shape[0])

    def norm(name: str) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = np.ones(WIDTH), np.zeros(WIDTH)

    linear("vit.embeddings.patch_embeddings.projection", WIDTH, 1, PATCH, PATCH)
    for i in range(BLOCKS):
        block = f"vit.encoder.layer.{i}"
        norm(f"{block}.layernorm_before")
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            linear(f"{block}.attention.{part}", WIDTH, WIDTH)
        norm(f"{block}.layernorm_after")
        linear(f"{block}.intermediate.dense", INNER, WIDTH)
        linear(f"{block}.output.dense", WIDTH, INNER)
    norm("vit.layernorm")
    linear("classifier", CLASSES, WIDTH)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_digits(folder / "digits.npz")
    write_random_vit(folder / "vit")
    print(RANDOM_MODEL)


def compare(folder: Path) -> None:
    classes, summaries = [], []
    for strategy in ("sp", "astra"):
        with h5py.File(folder / f"{strategy}.out.h5", "r") as file:
            classes.append(file["outputs/class"][()])
        summaries.append(json.loads((folder / f"{strategy}.out.json").read_text()))
    exact, coded = classes
    rows = [
        (f"{len(exact)} images on {summaries[1]['ranks']} ranks", "exact (sp)", "astra"),
        ("bits per token per block", *(s["bits_per_token_per_block"] for s in summaries)),
        ("bytes contributed, measured", *(sum(s["contributed_bytes"]) for s in summaries)),
        ("bytes contributed, formula", *(sum(s["formula_bytes"]) for s in summaries)),
        ("accuracy (random model: chance)", *(f"{s['metrics']['accuracy']:.1%}" for s in summaries)),
        ("classes it answers with", *(f"{len(np.unique(c))} of {CLASSES}" for c in classes)),
        ("same class as exact", "100%", f"{np.mean(exact == coded):.1%}"),
    ]
    print(RANDOM_MODEL + "\n")
    for name, *cells in rows:
        print(f"{name:<34}" + "".join(f"{cell:>14}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("make", "compare"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    {"make": make, "compare": compare}[args.step](args.folder)


if __name__ == "__main__":
    main()
