"""The Transformer block that all families share, as operations on the rows a rank holds."""

from __future__ import annotations

from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.config import ModelConfig
from astra_mpi.device.scratch import Scratch
from astra_mpi.device.weights import Matrix, Narrow, SideBySide, Weights, forget, product
from astra_mpi.models.norms import HeadNorm
from astra_mpi.models.recipe import Recipe


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
        self.query_norm, self.key_norm = self._head_norms()
        #: of what the projection gives; a norm of queries scales what comes out of it
        self.query_scale = 1.0 if self.query_norm else self._score_scale

    @property
    def _score_scale(self) -> float:
        return self.config.score_scale or self.config.d_head**-0.5

    def _head_norms(self) -> tuple[HeadNorm | None, HeadNorm | None]:
        """Of queries, scaled as scores are, and of keys."""
        if not self.recipe.qk_norm:
            return None, None
        of = self.config.d_head, self.config.norm_eps
        query = HeadNorm(self.recipe.qk_norm, self.w["q_norm.weight"], *of, self._score_scale)
        return query, HeadNorm(self.recipe.qk_norm, self.w["k_norm.weight"], *of)

    @property
    def normalises_input(self) -> bool:
        """Whether it begins with a norm; some first blocks do without the one that the others have."""
        return self.recipe.normalises_input and "norm1.weight" in self.w

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
        """(D, H d + 2 d_kv). Arrays are joined, and scale the queries by 1/sqrt(d_head) instead of every score."""
        q, k, v = (self.w[f"{name}.weight"] for name in "qkv")
        if any(isinstance(weight, Narrow) for weight in (q, k, v)):
            return SideBySide(q, k, v)
        joined = self.scratch.xp.concatenate([q * self.query_scale, k, v], axis=1)
        for weight in (q, k, v):
            forget(weight)
        return joined

    @cached_property
    def b_qkv(self) -> np.ndarray:
        """(H d + 2 d_kv,): zeros where there are no biases, the queries' scaled as `w_qkv` scales."""
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
        return self.norm(x, "norm1") if self.normalises_input else x

    def queries_keys_values(self, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """h (n, D) -> scaled queries (n, H d) and [K | V] (n, 2 d_kv), two views of one array."""
        qkv = self._product(h, self.w_qkv, "qkv")
        qkv += self.b_qkv
        queries, kv = qkv[:, : self.d_queries], qkv[:, self.d_queries :]
        if isinstance(self.w_qkv, SideBySide):
            queries *= self.query_scale
        if self.query_norm is not None and self.key_norm is not None:
            self.query_norm(queries, self.kernels)
            self.key_norm(kv[:, : kv.shape[1] // 2], self.kernels)
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
        if self.key_norm is not None:
            self.key_norm(kv[:, : kv.shape[1] // 2], self.kernels)
        return kv

    def output(self, x: np.ndarray, attended: np.ndarray) -> np.ndarray:
        """Block input x (n, D) and attention result (n, H d) -> block output, in x."""
        h = self.add_attention(x, self.product(attended, "o", "product"))
        return self.add_mlp(x, self.product(self.inner(h), "fc2", "product"))

    def add_attention(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x (n, D) with the attention's y (n, D), the product of its last layer without bias -> what the MLP takes.

        y is overwritten; the sum is in x.
        """
        recipe, bias = self.recipe, self.w.get("o.bias")
        if recipe.parallel:
            h = self.norm(x, "norm1" if recipe.shared_norm else "norm2")
            self.kernels.add_residual(x, y, bias)
            return h
        if recipe.output_norms:
            self._add_normed(x, y, bias, "post1")
            return self.norm(x, "norm2") if recipe.input_norms else x
        return self.add_norm(x, y, "o", "norm2" if recipe.norm_first else "norm1")

    def add_mlp(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x (n, D) with the MLP's y (n, D), the product of its last layer without bias -> block output, in x."""
        bias = self.w.get("fc2.bias")
        if self.recipe.output_norms:
            return self._add_normed(x, y, bias, "post2")
        if not self.recipe.norm_first:
            return self.add_norm(x, y, "fc2", "norm2")
        return self.kernels.add_residual(x, y, bias)

    def _add_normed(self, x: np.ndarray, y: np.ndarray, bias: np.ndarray | None, norm: str) -> np.ndarray:
        """x += norm(y + bias)."""
        if bias is not None:
            y += bias
        weight, eps, out = self.w[f"{norm}.weight"], self.config.norm_eps, self.scratch("post normed", *y.shape)
        if self.recipe.rms:
            normed = self.kernels.rms_norm(y, weight, eps, out)
        else:
            normed = self.kernels.layer_norm(y, weight, self.w[f"{norm}.bias"], eps, out)
        return self.kernels.add_residual(x, normed, None)

    def inner(self, h: np.ndarray) -> np.ndarray:
        """h (n, D) -> inner activations (n, d_ff)."""
        inner = self.product(h, "fc1", "inner")
        bias, act = self.w.get("fc1.bias"), self.config.activation
        if self.recipe.gated:
            gate = self.product(h, "gate", "gate")
            return self.kernels.activate_gated(inner, bias, gate, self.w.get("gate.bias"), act)
        return self.kernels.activate(inner, bias, act)

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
