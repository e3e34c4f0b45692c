"""The Transformer block that all families share, as operations on the rows a rank holds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.config import ModelConfig
from astra_mpi.device.scratch import Scratch
from astra_mpi.device.weights import Matrix, Narrow, SideBySide, Weights, forget, product

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recipe:
    """What blocks of a family are made of."""

    norm_first: bool  # normalised before attention and MLP, or after each residual sum
    rms: bool = False  # RMSNorm without a bias, else LayerNorm
    gated: bool = False  # MLP: (x W_fc1) * act(x W_gate), else act(x W_fc1)
    rotary: bool = False  # queries and keys are turned by their positions (RoPE)


def block_shapes(config: ModelConfig, recipe: Recipe | None = None, unbiased: Collection[str] = ()) -> Shapes:
    """Names and shapes of the weights of all blocks; linear layers are (in, out), those `unbiased` have no bias."""
    recipe = recipe or Recipe(norm_first=True)
    d, kv, f = config.d_model, config.d_kv, config.d_ff
    linears = {"q": (d, d), "k": (d, kv), "v": (d, kv), "o": (d, d), "fc1": (d, f), "fc2": (f, d)}
    if recipe.gated:
        linears["gate"] = (d, f)
    shapes: Shapes = {}
    for i in range(config.n_layers):
        for name, shape in linears.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            if name not in unbiased:
                shapes[f"blocks.{i}.{name}.bias"] = shape[1:]
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{i}.{name}.weight"] = (d,)
            if not recipe.rms:
                shapes[f"blocks.{i}.{name}.bias"] = (d,)
    return shapes


def block_weights(weights: Weights, n_layers: int) -> list[dict[str, Any]]:
    """A model's weights -> per block, its own by their names inside it."""
    blocks: list[dict[str, Any]] = [{} for _ in range(n_layers)]
    for name, weight in weights.items():
        if name.startswith("blocks."):
            _, i, inside = name.split(".", 2)
            blocks[int(i)][inside] = weight
    return blocks


class Block:
    """One block's weights and the four steps of its forward pass. n is the number of rows a rank holds.

    Results lie in `scratch`, which all blocks share, and are valid until the same step is taken again.
    """

    def __init__(
        self, config: ModelConfig, recipe: Recipe, weights: Weights, kernels: ModuleType, scratch: Scratch
    ) -> None:
        """weights: this block's, by their names inside it."""
        self.config, self.recipe, self.kernels, self.scratch = config, recipe, kernels, scratch
        self.w = dict(weights)
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.query_scale = config.d_head**-0.5

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, as they are stored."""
        return sum(weight.nbytes for weight in self.w.values())

    @property
    def d_queries(self) -> int:
        """Width of the queries of a token."""
        return self.n_heads * self.config.d_head

    @cached_property
    def w_qkv(self) -> np.ndarray | SideBySide:
        """(D, D + 2 d_kv). Arrays are joined, and scale the queries by 1/sqrt(d_head) instead of every score."""
        q, k, v = (self.w[f"{name}.weight"] for name in "qkv")
        if any(isinstance(weight, Narrow) for weight in (q, k, v)):
            return SideBySide(q, k, v)
        joined = self.scratch.xp.concatenate([q * self.query_scale, k, v], axis=1)
        for weight in (q, k, v):
            forget(weight)
        return joined

    @cached_property
    def b_qkv(self) -> np.ndarray:
        """(D + 2 d_kv,): zeros where there are no biases, the queries' scaled as `w_qkv` scales."""
        xp, dtype = self.scratch.xp, self.scratch.dtype
        q, k, v = (self.w.get(f"{n}.bias", xp.zeros(self.w[f"{n}.weight"].shape[1], dtype)) for n in "qkv")
        return xp.concatenate([q if isinstance(self.w_qkv, SideBySide) else q * self.query_scale, k, v])

    @cached_property
    def w_kv(self) -> Matrix:
        """(D, 2 d_kv): the projection to keys and values."""
        w_qkv = self.w_qkv
        return SideBySide(*w_qkv.matrices[1:]) if isinstance(w_qkv, SideBySide) else w_qkv[:, self.d_queries :]

    @property
    def b_kv(self) -> np.ndarray:
        return self.b_qkv[self.d_queries :]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        out, weight, eps = self.scratch("normed", *x.shape), self.w[f"{name}.weight"], self.config.norm_eps
        if self.recipe.rms:
            return self.kernels.rms_norm(x, weight, eps, out)
        return self.kernels.layer_norm(x, weight, self.w[f"{name}.bias"], eps, out)

    def attention_input(self, x: np.ndarray) -> np.ndarray:
        """x (n, D) -> what the attention projects (n, D)."""
        return self.norm(x, "norm1") if self.recipe.norm_first else x

    def queries_keys_values(self, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """h (n, D) -> scaled queries (n, D) and [K | V] (n, 2 d_kv), two views of one array."""
        qkv = self._product(h, self.w_qkv, "qkv")
        qkv += self.b_qkv
        queries, kv = qkv[:, : self.d_queries], qkv[:, self.d_queries :]
        if isinstance(self.w_qkv, SideBySide):
            queries *= self.query_scale
        return queries, kv

    def turn(self, turns: np.ndarray) -> None:
        """Turn the queries and keys that `queries_keys_values` gave last, in place: turns (n, d_head) of their rows."""
        qkv = self.scratch("qkv", len(turns), self.w_qkv.shape[1])
        self.kernels.rotate(qkv, turns, self.n_heads + self.n_kv_heads)

    def keys_values(self, h: np.ndarray) -> np.ndarray:
        """h (n, D) -> [K | V] (n, 2 d_kv), a new array."""
        out = self.scratch.xp.empty((len(h), self.w_kv.shape[1]), self.scratch.dtype)
        kv = product(h, self.w_kv, out, self.kernels, self.scratch)
        kv += self.b_kv
        return kv

    def output(self, x: np.ndarray, attended: np.ndarray) -> np.ndarray:
        """Block input x (n, D) and attention result (n, D) -> block output, in x."""
        norm_first = self.recipe.norm_first
        h = self._add_norm(x, attended, "o", "norm2" if norm_first else "norm1")
        inner = self.inner(h)
        if not norm_first:
            return self._add_norm(x, inner, "fc2", "norm2")
        y = self.product(inner, "fc2", "product")
        return self.kernels.add_residual(x, y, self.w.get("fc2.bias"))

    def inner(self, h: np.ndarray) -> np.ndarray:
        """h (n, D) -> inner activations (n, d_ff)."""
        inner = self.product(h, "fc1", "inner")
        bias, act = self.w.get("fc1.bias"), self.config.activation
        if self.recipe.gated:
            gate = self.product(h, "gate", "gate")
            return self.kernels.activate_gated(inner, bias, gate, self.w.get("gate.bias"), act)
        return self.kernels.activate(inner, bias, act)

    def _add_norm(self, x: np.ndarray, inner: np.ndarray, linear: str, norm: str) -> np.ndarray:
        return self.add_norm(x, self.product(inner, linear, "product"), linear, norm)

    def add_norm(self, x: np.ndarray, y: np.ndarray, linear: str, norm: str) -> np.ndarray:
        """x + (y + bias of `linear`), normalised; y (n, D) is that layer's product, and is overwritten.

        The sum itself is kept, in x, only when blocks normalise first.
        """
        total, other, out = (x, y, self.scratch("normed", *x.shape)) if self.recipe.norm_first else (y, x, x)
        bias, weight, eps = self.w.get(f"{linear}.bias"), self.w[f"{norm}.weight"], self.config.norm_eps
        if self.recipe.rms:
            return self.kernels.add_rms_norm(total, other, bias, weight, eps, out)
        return self.kernels.add_layer_norm(total, other, bias, weight, self.w[f"{norm}.bias"], eps, out)

    def product(self, x: np.ndarray, linear: str, name: str) -> np.ndarray:
        """x @ weight of `linear`, in the scratch buffer `name`."""
        return self._product(x, self.w[f"{linear}.weight"], name)

    def _product(self, x: np.ndarray, weight: Matrix, name: str) -> np.ndarray:
        """x @ weight, in the scratch buffer of this name."""
        return product(x, weight, self.scratch(name, len(x), weight.shape[1]), self.kernels, self.scratch)
