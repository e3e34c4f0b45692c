"""Random models of a named shape: for latency work, where the weights' values do not matter."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from astra_mpi.calibrate import fit_codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.config import require
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.weights import Made, Weights, narrowed
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import ModelFile, weight_shapes
from astra_mpi.models import FAMILIES
from astra_mpi.models.images import Preprocess

SCALE = 0.02  # standard deviation of the weights, as BERT and ViT are initialised
SAMPLES_PER_ENTRY = 4  # activations that k-means sees: enough that entries differ, which is all that latency asks for
BATCH = 4


def presets() -> dict[str, Any]:
    """Name -> function of the number of content tokens (None: the shape's own) that makes a config."""
    return {name: make for family in FAMILIES.values() for name, make in family.PRESETS.items()}


def preset_config(name: str, n_tokens: int | None = None) -> Any:
    """The config of a preset; InputError on an unknown name or number of tokens."""
    known = presets()
    if name not in known:
        raise InputError(f"preset '{name}' is unknown; use one of {', '.join(known)}")
    return known[name](n_tokens)


def random_weights(config: Any, seed: int) -> Weights:
    """N(0, 0.02), biases 0, norms 1 and 0, each made when it is asked for. The same seed gives the same weights."""
    shapes = weight_shapes(config)
    draws = np.random.default_rng(seed).standard_normal(1 << 16, np.float32) * np.float32(SCALE)

    def make(name: str) -> np.ndarray:
        shape = shapes[name]
        if name.endswith(".bias"):
            return np.zeros(shape, np.float32)
        if "norm" in name:
            return np.ones(shape, np.float32)
        # drawn from the draws: less than half the time of as many normal numbers, which counts with billions
        return draws[np.random.default_rng([seed, zlib.crc32(name.encode())]).integers(0, len(draws), shape, np.uint16)]

    return Made(shapes, make)


def random_model(
    config: Any,
    codec: CodecConfig | None,
    seed: int,
    progress: Callable[[float, float], None] = lambda done, total: None,
    dtype: str = "float32",
) -> ModelFile:
    """A model with random weights, and codebooks fitted to its activations on random input.

    The same arguments give the same model. Without a codec, weights stay to be made when it is written.
    `progress(done, total)` counts blocks whose codebooks are fitted. InputError on a negative seed.
    """
    require(seed >= 0, f"--seed {seed}: at least 0")
    images = config.family == "vit"
    grey = [0.5] * config.channels if images else []
    preprocess = Preprocess(config.image_size, grey, grey).as_dict() if images else {"max_tokens": config.max_positions}
    weights = random_weights(config, seed)
    model = ModelFile(config, weights, preprocess=preprocess, stored_dtype=dtype)
    if codec is None:
        return model
    model = replace(model, weights={name: narrowed(name, weight, dtype) for name, weight in weights.items()})
    n_samples = SAMPLES_PER_ENTRY * codec.codebook_size
    batches = _random_batches(config, seed)
    return replace(model, codec=fit_codec(model, batches, codec, seed=seed, n_samples=n_samples, progress=progress))


def _random_batches(config: Any, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Without end."""
    while True:
        yield random_batch(config, BATCH, seed=seed)
        seed += 1
