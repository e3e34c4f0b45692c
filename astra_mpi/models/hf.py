"""Hugging Face names in this package's terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from astra_mpi.models.block import Shapes


class Source(NamedTuple):
    """Where a weight comes from: a Hugging Face tensor, or one of equal parts of a layer's outputs."""

    name: str  # without the family's prefix
    part: int = 0
    n_parts: int = 1
    in_out: bool = False  # a linear layer stored (in, out); they are (out, in) as a rule
    times: str = ""  # another tensor (out,) that its outputs are multiplied with, folded in at conversion
    remake: Callable[[np.ndarray], np.ndarray] | None = None  # what the tensor becomes before all else; ValueError


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


def to_canonical(
    name: str, array: np.ndarray, shape: tuple[int, ...], source: Source, times: np.ndarray | None = None
) -> np.ndarray:
    """The tensor of `source` as weight `name` of this shape, C-contiguous; times: the values of `source.times`.

    ValueError if the sizes do not fit.
    """
    weight = arranged(name, array, shape, source)
    return np.ascontiguousarray(weight if times is None else weight * times)


def arranged(name: str, array: np.ndarray, shape: tuple[int, ...], source: Source) -> np.ndarray:
    """`to_canonical` as a view: linear layers and patch projections become (in, out).

    Linear layers are those whose canonical name ends in ".weight"; embeddings and class tokens lose leading 1s.
    """
    if source.remake is not None:
        array = source.remake(array)
    array = np.split(array, source.n_parts, axis=-1 if source.in_out else 0)[source.part]
    if name.endswith(".weight") and array.ndim >= 2:
        array = array if source.in_out else array.reshape(array.shape[0], -1).T
        if array.shape != shape:
            raise ValueError(f"{array.shape} is not {shape}")
    return array.reshape(shape)
