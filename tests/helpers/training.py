"""Small training decks and data for tests."""

import json

import numpy as np

from astra_mpi.files.modelfile import write_model
from astra_mpi.train.deck import load_train_deck
from helpers.fakes import bert_config, gpt2_config, model_file, vit_config

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps in the sun all day long. " * 60


def write_images(path, n=40, seed=0, classes=3, labels=None):
    """Grey 8x8 images whose class is the brightest band."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n) if labels is None else np.asarray(labels)
    images = rng.integers(0, 90, (len(labels), 8, 8))
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 140
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return path


def write_tokens(path, n=24, longest=11, vocab=50, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest + 1, n)
    np.savez(path, tokens=rng.integers(0, vocab, (n, longest)), lengths=lengths)
    return path


SMALL = {
    "vit": vit_config(image_size=(8, 8), patch_size=2, channels=1, n_classes=3),
    "bert": bert_config(),
    "gpt2": gpt2_config(),
}


def write_small(folder, family):
    """A model file and data for it; -> the deck's sections about them."""
    config = SMALL[family]
    file = model_file(config)
    grey = {"size": [8, 8], "mean": [0.5], "std": [0.5], "rescale": 1 / 255, "resample": 2}
    from dataclasses import replace

    write_model(folder / "model.h5", replace(file, codec=None, preprocess=grey if family == "vit" else None))
    if family == "vit":
        write_images(folder / "data.npz")
        data = {"kind": "images", "labels": "labels"}
    else:
        write_tokens(folder / "data.npz")
        data = {"kind": "tokens", "mask": "lengths"}
    return {"model": {"path": str(folder / "model.h5")}, "data": {"train": str(folder / "data.npz"), **data}}


def write_deck(path, sections, **changes):
    """Decks of a few steps; changes are section_key=value."""
    deck = {
        "codec": {"stages": 2, "codebook_size": 8, "samples": 200},
        "train": {"steps": 4, "batch": 8, "ranks": [2, 3], "eval_every": 4, "log_every": 1},
        "output": {"path": str(path.with_suffix(".h5"))},
    }
    for name, keys in sections.items():
        deck.setdefault(name, {}).update(keys)
    for name, value in changes.items():
        section, key = name.split("_", 1)
        deck.setdefault(section, {})[key] = value
    lines = []
    for section, keys in deck.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def small_deck(folder, family, name="deck", **changes):
    return load_train_deck(write_deck(folder / f"{name}.toml", write_small(folder, family), **changes))
