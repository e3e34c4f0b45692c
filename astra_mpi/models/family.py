"""What the engine asks of every family, as most of them answer it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from astra_mpi.checkpoint.reference import Reference
from astra_mpi.device.scratch import Scratch
from astra_mpi.device.weights import Weights, product
from astra_mpi.device.xp import module_of
from astra_mpi.models.batch import Batch
from astra_mpi.models.recipe import Recipe

#: per block (N, d_head) as the kernel `rotate` takes it, or None where nothing turns; blocks may share an array
Turns = Sequence[np.ndarray | None]


class Family:
    """A config and weights at work: a family adds `prepare`, `embed`, `pool`, `final` and `head` (see `ViT`)."""

    recipe: ClassVar[Recipe]
    #: a token attends to itself and the tokens before it
    causal: ClassVar[bool] = False
    #: what codebooks quantise unless told otherwise: behind a norm, if the block begins with one, an error changes keys
    #: and values by a linear map, which is the metric of codec/metric.py
    default_site: ClassVar[str] = "hidden"
    #: what transformers reads of its config.json
    reference: ClassVar[Reference]
    #: prefix of tensor names in checkpoints with a head on top
    hf_prefix: ClassVar[str] = ""
    #: a tensor that every checkpoint has; what stands before its name was put there by a wrapper
    hf_anchor: ClassVar[str] = ""
    #: other names that transformers takes for a tensor: a pattern in ours, and what stands there instead
    hf_other_names: ClassVar[tuple[tuple[str, str], ...]] = ()
    #: what the names of tensors in blocks begin with, after the prefix
    hf_blocks: ClassVar[tuple[str, ...]] = ("encoder.layer.",)
    #: ends of the names of tensors that are no weights
    hf_constants: ClassVar[tuple[str, ...]] = ("position_ids",)

    def __init__(self, config: Any, weights: Weights, kernels: ModuleType) -> None:
        self.config, self.w, self.kernels = config, weights, kernels
        self.scratch = Scratch()  # widened weights

    def product(self, x: np.ndarray, name: str) -> np.ndarray:
        """x @ weight `name`, a new array."""
        weight = self.w[name]
        out = module_of(x).empty((len(x), weight.shape[1]), x.dtype)
        return product(x, weight, out, self.kernels, self.scratch)

    @property
    def share_width(self) -> int:
        """Width of a row of `pool`."""
        return self.config.d_model

    @classmethod
    def recipe_of(cls, config: Any) -> Recipe:
        """What blocks are made of, where that depends on the config."""
        return cls.recipe

    def turns(self, batch: Batch) -> Turns | None:
        """What turns the packed tokens' queries and keys, or None."""
        return None

    @cached_property
    def relative(self) -> np.ndarray | None:
        """(H, 2 R + 1) biases of scores by the distance of a key from its query, -R .. R and beyond, or None."""
        return None

    def places(self, batch: Batch) -> np.ndarray | None:
        """(N,) int32 positions of the packed tokens where windows or biases by distance look at them, else None."""
        if self.relative is None and not any(self.config.windows):
            return None
        assert batch.positions is not None
        return batch.positions.astype(np.int32)
