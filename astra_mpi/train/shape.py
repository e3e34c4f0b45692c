"""[shape] of a training deck: a model with random weights that fits the training data."""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.convert.presets import random_weights
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.files.utf8 import read_text
from astra_mpi.inputs.arrays import ArrayFile
from astra_mpi.models.gpt2 import GPT2Config
from astra_mpi.models.images import Preprocess
from astra_mpi.models.llama import LlamaConfig
from astra_mpi.models.vision.vit import ViTConfig
from astra_mpi.train.deck import DataSection, ShapeSection

END_OF_TEXT = "<|endoftext|>"


def new_model(shape: ShapeSection, data: DataSection, seed: int) -> ModelFile:
    """Random weights for the training data: its classes and colours, or a vocabulary made from its text."""
    common = {name: getattr(shape, name) for name in ("d_model", "n_heads", "n_layers")}
    common |= {"n_kv_heads": shape.n_heads, "d_ff": shape.d_ff or 4 * shape.d_model}
    wanted = "images" if shape.family == "vit" else "text"
    require(data.kind == wanted, f"shape.family = '{shape.family}' needs data.kind = '{wanted}', not '{data.kind}'")
    tokenizer: str | None = None
    config: Any
    if shape.family == "vit":
        config, preprocess = _vit(shape, data, common)
    else:
        tokenizer, size = vocabulary(data, shape.vocabulary)
        common |= {"vocab_size": size, "max_positions": shape.max_tokens, "norm_eps": 1e-5}
        preprocess = {"max_tokens": shape.max_tokens}
        if shape.family == "gpt2":
            config = GPT2Config(activation="gelu_tanh", **common)
        else:
            config = LlamaConfig(activation="silu", **common)
    return ModelFile(config, random_weights(config, seed), tokenizer=tokenizer, preprocess=preprocess)


def _vit(shape: ShapeSection, data: DataSection, common: dict[str, Any]) -> tuple[ViTConfig, dict[str, Any]]:
    """Images of the size of the data, one class per label up to the highest, normalised by the training pixels."""
    file = ArrayFile(data.train)
    names = data.dataset or "images"
    require(isinstance(names, str), f"data.dataset: {data.train} takes one name")
    images = np.asarray(file.get(str(names)))
    require(
        images.dtype == np.uint8 and images.ndim in (3, 4) and len(images) > 0,
        f"{data.train}: images are {images.dtype} of shape {images.shape}; a new model needs uint8 (items, height, "
        "width, channels) or grey (items, height, width), at least one",
    )
    if data.labels is None:
        raise InputError(f"{data.train}: data.labels is missing; name the integer classes of the images")
    labels = np.asarray(file.get(data.labels))
    require(
        labels.dtype.kind in "iu" and labels.shape == images.shape[:1] and int(labels.min(initial=0)) >= 0,
        f"{data.train}: '{data.labels}' is {labels.dtype} of shape {labels.shape}; give one class per image, from 0",
    )
    images = images[..., None] if images.ndim == 3 else images
    pixels = images.reshape(-1, images.shape[3])
    mean = pixels.mean(axis=0, dtype=np.float64) / 255
    std = np.maximum(pixels.std(axis=0, dtype=np.float64) / 255, 1 / 255)
    height, width = images.shape[1:3]
    config = ViTConfig(
        **common,
        activation="gelu",
        norm_eps=1e-6,
        image_size=(height, width),
        patch_size=shape.patch_size,
        channels=images.shape[3],
        n_classes=int(labels.max()) + 1,
    )
    return config, Preprocess((height, width), mean.tolist(), std.tolist()).as_dict()


def vocabulary(data: DataSection, size: int) -> tuple[str, int]:
    """-> (tokenizer.json of a byte-level BPE vocabulary made from the training text, its size)."""
    require(data.train.suffix == ".txt", f"{data.train}: a new language model is trained on a .txt file of UTF-8 text")
    require(size >= 257, f"shape.vocabulary = {size}: at least 257, the bytes and the end of a text")
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as exc:
        raise InputError("text needs the tokenizers library; pip install 'astra-mpi[text]'") from exc
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_text(data.train).split("\n\n"), trainer)
    return tokenizer.to_str(), tokenizer.get_vocab_size()
