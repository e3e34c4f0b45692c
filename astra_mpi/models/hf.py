"""Hugging Face names in this package's terms."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from astra_mpi.models.block import Shapes


class Source(NamedTuple):
    """Where a weight comes from: a Hugging Face tensor, or one of equal parts of its last axis."""

    name: str  # without the family's prefix
    part: int = 0
    n_parts: int = 1
    in_out: bool = False  # a linear layer stored (in, out); they are (out, in) as a rule
    skip: int = 0  # so many rows at its beginning are not used


def map_names(shapes: Shapes, names: dict[str, str], block: dict[str, str], prefix: str) -> dict[str, Source]:
    """Canonical names -> sources: `names` for whole names or layers, `block` for layers of block i at `prefix`."""
    mapped = {}
    for name in shapes:
        layer, _, part = name.rpartition(".")
        if name.startswith("blocks."):
            _, i, layer = layer.split(".", 2)
            mapped[name] = Source(f"{prefix.format(i)}.{block[layer]}.{part}")
        else:
            mapped[name] = Source(names[name] if name in names else f"{names[layer]}.{part}")
    return mapped


def to_canonical(name: str, array: np.ndarray, shape: tuple[int, ...], source: Source) -> np.ndarray:
    """The tensor of `source` as weight `name` of this shape, C-contiguous. ValueError if the sizes do not fit."""
    return np.ascontiguousarray(arranged(name, array, shape, source))


def arranged(name: str, array: np.ndarray, shape: tuple[int, ...], source: Source) -> np.ndarray:
    """`to_canonical` as a view: linear layers and patch projections become (in, out).

    Linear layers are those whose canonical name ends in ".weight"; embeddings and class tokens lose leading 1s.
    """
    array = np.split(array[source.skip :], source.n_parts, axis=-1)[source.part]
    if name.endswith(".weight") and array.ndim >= 2:
        array = array if source.in_out else array.reshape(array.shape[0], -1).T
        if array.shape != shape:
            raise ValueError(f"{array.shape} is not {shape}")
    return array.reshape(shape)
