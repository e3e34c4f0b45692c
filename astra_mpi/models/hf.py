"""Hugging Face names in this package's terms."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from astra_mpi.models.recipe import Shapes


class Source(NamedTuple):
    """Where a weight comes from: a Hugging Face tensor, one of equal parts of its last axis, or some of its rows.

    What multiplies or is added to a layer's numbers in the forward pass of transformers is folded in here.
    """

    name: str  # without the family's prefix; "": zeros
    part: int = 0
    n_parts: int = 1
    in_out: bool = False  # a linear layer stored (in, out); they are (out, in) as a rule
    rows: slice | tuple[int, ...] | None = None  # of the first axis, those that are taken, in this order; None: all
    n_rows: int = 0  # of the tensor, where some are taken
    offset: float = 0.0  # added to what is taken,
    scale: float = 1.0  # which is then multiplied
    more: tuple[str, ...] = ()  # tensors that stand behind it, joined along the first axis

    def fits(self, found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Whether a tensor of shape `found` has as many numbers as a weight of this shape needs."""
        if self.rows is None:
            return math.prod(found) == math.prod(shape) * self.n_parts
        taken = len(range(*self.rows.indices(self.n_rows))) if isinstance(self.rows, slice) else len(self.rows)
        return found[:1] == (self.n_rows,) and math.prod(found[1:]) * taken == math.prod(shape)


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


def half_turns(n_heads: int, d_head: int, width: int) -> tuple[int, ...]:
    """Rows of queries or keys whose heads turn in their first `width` numbers, ordered so that number a makes a pair
    with a + d_head / 2: what turns in each half first, then what stands still.
    """
    half, still = width // 2, (d_head - width) // 2
    first = [*range(half), *range(width, width + still)]
    second = [*range(half, width), *range(width + still, d_head)]
    return tuple(h * d_head + a for h in range(n_heads) for a in first + second)


def to_canonical(name: str, array: np.ndarray, shape: tuple[int, ...], source: Source) -> np.ndarray:
    """The tensor of `source` as weight `name` of this shape, C-contiguous. ValueError if the sizes do not fit."""
    found = np.ascontiguousarray(arranged(name, array, shape, source))
    if source.offset:
        found = found + np.float32(source.offset)
    return found if source.scale == 1 else found * np.float32(source.scale)


def arranged(name: str, array: np.ndarray, shape: tuple[int, ...], source: Source) -> np.ndarray:
    """`to_canonical` before anything is folded in, a view where that is possible: linear layers and patch projections
    become (in, out).

    Linear layers are those whose canonical name ends in ".weight"; embeddings and class tokens lose leading 1s.
    """
    if source.rows is not None:
        array = array[source.rows if isinstance(source.rows, slice) else np.array(source.rows, np.int64)]
    array = np.split(array, source.n_parts, axis=-1)[source.part]
    if name.endswith(".weight") and array.ndim >= 2:
        array = array if source.in_out else array.reshape(array.shape[0], -1).T
        if array.shape != shape:
            raise ValueError(f"{array.shape} is not {shape}")
    return array.reshape(shape)
