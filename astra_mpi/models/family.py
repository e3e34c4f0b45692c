"""What the engine asks of every family, as most of them answer it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.device.memory import Memory
from astra_mpi.device.packed import for_products, is_narrow
from astra_mpi.device.scratch import Scratch
from astra_mpi.device.weights import Matrix, Weights, forget, moved, product
from astra_mpi.device.xp import module_of
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.models.hf import Source
from astra_mpi.models.recipe import Recipe, Shapes

#: per block (N, d_head) as the kernel `rotate` takes it, or None where nothing turns; blocks may share an array
Turns = Sequence[np.ndarray | None]


class Family:
    """A config and weights at work: a family adds what raises NotImplementedError here (see `ViT`)."""

    #: its class of `ModelConfig`, whose `family` is the name in a model file
    Config: ClassVar[Any]
    #: names of `astra-mpi init` -> how many tokens, or None -> config
    PRESETS: ClassVar[Any]
    recipe: ClassVar[Recipe]  # of most configs; see `recipe_of`
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

    #: layers on top whose products are of the blocks' type
    heads: ClassVar[tuple[str, ...]] = ("head.weight",)

    def __init__(self, config: Any, weights: Weights, kernels: ModuleType, memory: Memory) -> None:
        self.config, self.w, self.kernels, self.memory = config, weights, kernels, memory
        self.scratch = Scratch()  # widened weights
        self._packed: dict[str, Matrix] = {}  # heads

    @property
    def head_weights(self) -> tuple[str, ...]:
        """What heads multiply by."""
        return self.heads

    def make_ready(self) -> None:
        """Pack what products take, now and not in the first pass."""
        for name in self.heads:
            if name in self.w:
                self._layer(name)
        if self.memory.moves and not is_narrow(self.kernels):
            for name in self.head_weights:
                if name in self.w:
                    stored = self.w[name]
                    self.w = {**self.w, name: moved(stored, self.memory)}
                    if self.w[name] is not stored:
                        forget(stored)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights outside of the blocks, as they are stored or packed."""
        stored = sum(
            weight.nbytes for name, weight in self.w.items() if not (name.startswith("blocks.") or name in self._packed)
        )
        return stored + sum(weight.nbytes for weight in self._packed.values())

    def _layer(self, name: str) -> Matrix:
        """Weight `name` as its product takes it."""
        if name not in self.heads:
            return self.w[name]
        if name not in self._packed:
            weight: Matrix = self.w[name]
            made = for_products(weight, self.kernels, self.memory)
            if made is weight:
                return weight
            self._packed[name] = made
            forget(self.w[name])
        return self._packed[name]

    def product(self, x: np.ndarray, name: str) -> np.ndarray:
        """x @ weight `name`, a new array."""
        weight = self._layer(name)
        out = module_of(x).empty((len(x), weight.shape[1]), x.dtype)
        return product(x, weight, out, self.kernels, self.scratch)

    def prepare(self, inputs: np.ndarray, mask: np.ndarray | None = None) -> Batch:
        """Inputs and mask (B, T), 0 = drop -> packed batch. InputError on what cannot be an input of this model."""
        raise NotImplementedError

    def embed(self, batch: Batch, layout: Layout) -> np.ndarray:
        """-> rows (n, D) of this rank."""
        raise NotImplementedError

    def pool(self, x: np.ndarray, layout: Layout) -> np.ndarray:
        """Rows after the last block (n, D) -> this rank's share (B, share_width) of what `head` needs."""
        raise NotImplementedError

    def final(self, x: np.ndarray) -> np.ndarray:
        """Rows after the last block (n, D) -> hidden states after the last norm (n, D), or logits (n, V)."""
        raise NotImplementedError

    def head(self, pooled: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Shares summed over ranks (B, share_width) -> answers, one row per sequence."""
        raise NotImplementedError

    @staticmethod
    def weight_shapes(config: Any) -> Shapes:
        """Name -> shape of every weight."""
        raise NotImplementedError

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> Any:
        """config.json -> config. InputError on what is not supported."""
        raise NotImplementedError

    @staticmethod
    def hf_weights(config: Any) -> dict[str, Source]:
        """Weight -> where a Hugging Face checkpoint has it."""
        raise NotImplementedError

    @property
    def share_width(self) -> int:
        """Width of a row of `pool`."""
        return int(self.config.share_width)

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
