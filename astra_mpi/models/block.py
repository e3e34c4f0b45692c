"""The Transformer block that all families share, as operations on the rows a rank holds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from astra_mpi.config import ModelConfig
from astra_mpi.scratch import Scratch
from astra_mpi.xp import module_of

Weights = dict[str, np.ndarray]
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


class Block:
    """One block's weights and the four steps of its forward pass. n is the number of rows a rank holds.

    Results lie in `scratch`, which all blocks share, and are valid until the same step is taken again.
    """

    def __init__(
        self, config: ModelConfig, recipe: Recipe, weights: Weights, i: int, kernels: ModuleType, scratch: Scratch
    ) -> None:
        self.config, self.recipe, self.kernels, self.scratch = config, recipe, kernels, scratch
        prefix = f"blocks.{i}."
        w = {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
        widths = {"q": config.d_model, "k": config.d_kv, "v": config.d_kv}
        xp, dtype = scratch.xp, scratch.dtype
        bias = {name: w.get(f"{name}.bias", xp.zeros(width, dtype)) for name, width in widths.items()}
        # 1/sqrt(d_head) is applied to the queries once, here, instead of to every score
        scale = config.d_head**-0.5
        self.w_qkv = xp.concatenate([w["q.weight"] * scale, w["k.weight"], w["v.weight"]], axis=1)  # (D, D + 2 d_kv)
        self.b_qkv = xp.concatenate([bias["q"] * scale, bias["k"], bias["v"]])
        self.w = w

    @property
    def w_kv(self) -> np.ndarray:
        """(D, 2 d_kv): the projection to keys and values."""
        return self.w_qkv[:, self.config.d_model :]

    @property
    def b_kv(self) -> np.ndarray:
        return self.b_qkv[self.config.d_model :]

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
        return qkv[:, : self.config.d_model], qkv[:, self.config.d_model :]

    def turn(self, turns: np.ndarray) -> None:
        """Turn the queries and keys that `queries_keys_values` gave last, in place: turns (n, d_head) of their rows."""
        qkv = self.scratch("qkv", len(turns), self.w_qkv.shape[1])
        self.kernels.rotate(qkv, turns, self.config.n_heads + self.config.n_kv_heads)

    def keys_values(self, h: np.ndarray) -> np.ndarray:
        """h (n, D) -> [K | V] (n, 2 d_kv), a new array."""
        return h @ self.w_kv + self.b_kv

    def output(self, x: np.ndarray, attended: np.ndarray) -> np.ndarray:
        """Block input x (n, D) and attention result (n, D) -> block output, in x."""
        norm_first = self.recipe.norm_first
        h = self._add_norm(x, attended, "o", "norm2" if norm_first else "norm1")
        inner = self._mlp(h)
        if not norm_first:
            return self._add_norm(x, inner, "fc2", "norm2")
        y = self._product(inner, self.w["fc2.weight"], "product")
        return self.kernels.add_residual(x, y, self.w.get("fc2.bias"))

    def _mlp(self, h: np.ndarray) -> np.ndarray:
        """h (n, D) -> inner activations (n, d_ff)."""
        inner = self._product(h, self.w["fc1.weight"], "inner")
        bias, act = self.w.get("fc1.bias"), self.config.activation
        if self.recipe.gated:
            gate = self._product(h, self.w["gate.weight"], "gate")
            return self.kernels.activate_gated(inner, bias, gate, self.w.get("gate.bias"), act)
        return self.kernels.activate(inner, bias, act)

    def _add_norm(self, x: np.ndarray, inner: np.ndarray, linear: str, norm: str) -> np.ndarray:
        return self.add_norm(x, self._product(inner, self.w[f"{linear}.weight"], "product"), linear, norm)

    def add_norm(self, x: np.ndarray, y: np.ndarray, linear: str, norm: str) -> np.ndarray:
        """x + (y + bias of `linear`), normalised; y (n, D) is that layer's product, and is overwritten.

        The sum itself is kept, in x, only when blocks normalise first.
        """
        total, other, out = (x, y, self.scratch("normed", *x.shape)) if self.recipe.norm_first else (y, x, x)
        bias, weight, eps = self.w.get(f"{linear}.bias"), self.w[f"{norm}.weight"], self.config.norm_eps
        if self.recipe.rms:
            return self.kernels.add_rms_norm(total, other, bias, weight, eps, out)
        return self.kernels.add_layer_norm(total, other, bias, weight, self.w[f"{norm}.bias"], eps, out)

    def _product(self, x: np.ndarray, weight: np.ndarray, name: str) -> np.ndarray:
        """x @ weight, in the scratch buffer of this name."""
        return module_of(x).matmul(x, weight, out=self.scratch(name, len(x), weight.shape[1]))
