"""Hugging Face names and settings in this package's terms."""

from __future__ import annotations

import numpy as np

from astra_mpi.models.block import Shapes

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def activation(name: str) -> str:
    """`hidden_act` -> our name of it; an unknown one is refused by `ModelConfig`."""
    return _ACTIVATIONS.get(name, name)


def map_names(shapes: Shapes, names: dict[str, str], block: dict[str, str], prefix: str) -> dict[str, str]:
    """Canonical -> foreign names: `names` for whole names or layers, `block` for layers of block i at `prefix`."""
    mapped = {}
    for name in shapes:
        layer, _, part = name.rpartition(".")
        if name.startswith("blocks."):
            _, i, layer = layer.split(".", 2)
            mapped[name] = f"{prefix.format(i)}.{block[layer]}.{part}"
        else:
            mapped[name] = names[name] if name in names else f"{names[layer]}.{part}"
    return mapped


def to_canonical(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A Hugging Face tensor as weight `name` of this shape: linear layers and patch projections become (in, out).

    Linear layers are those whose canonical name ends in ".weight"; embeddings and class tokens lose leading 1s.
    ValueError if the sizes do not fit.
    """
    if name.endswith(".weight") and array.ndim >= 2:
        array = array.reshape(array.shape[0], -1).T
        if array.shape != shape:
            raise ValueError(f"{array.shape} is not {shape}")
    return np.ascontiguousarray(array.reshape(shape))
