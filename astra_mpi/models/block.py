"""The Transformer block that all families share, as operations on the rows a rank holds."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from astra_mpi.config import ModelConfig

Weights = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recipe:
    """Where a block normalises: before attention and MLP (`norm_first`), or after each residual sum."""

    norm_first: bool


def block_shapes(config: ModelConfig, qkv_bias: bool = True) -> Shapes:
    """Names and shapes of the weights of all blocks; linear layers are (in, out)."""
    d, kv, f = config.d_model, config.d_kv, config.d_ff
    linears = {"q": (d, d), "k": (d, kv), "v": (d, kv), "o": (d, d), "fc1": (d, f), "fc2": (f, d)}
    shapes: Shapes = {}
    for i in range(config.n_layers):
        for name, shape in linears.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            if qkv_bias or name not in "qkv":
                shapes[f"blocks.{i}.{name}.bias"] = shape[1:]
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{i}.{name}.weight"] = shapes[f"blocks.{i}.{name}.bias"] = (d,)
    return shapes


class Block:
    """One block's weights and the four steps of its forward pass. n is the number of rows a rank holds."""

    def __init__(self, config: ModelConfig, recipe: Recipe, weights: Weights, i: int, kernels: ModuleType) -> None:
        self.config, self.recipe, self.kernels = config, recipe, kernels
        prefix = f"blocks.{i}."
        w = {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
        widths = {"q": config.d_model, "k": config.d_kv, "v": config.d_kv}
        bias = {name: w.get(f"{name}.bias", np.zeros(width, np.float32)) for name, width in widths.items()}
        # 1/sqrt(d_head) is applied to the queries once, here, instead of to every score
        scale = np.float32(config.d_head**-0.5)
        self.w_qkv = np.concatenate([w["q.weight"] * scale, w["k.weight"], w["v.weight"]], axis=1)  # (D, D + 2 d_kv)
        self.b_qkv = np.concatenate([bias["q"] * scale, bias["k"], bias["v"]])
        self.w = w

    @property
    def w_kv(self) -> np.ndarray:
        """(D, 2 d_kv): the projection to keys and values."""
        return self.w_qkv[:, self.config.d_model :]

    @property
    def b_kv(self) -> np.ndarray:
        return self.b_qkv[self.config.d_model :]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return self.kernels.layer_norm(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], self.config.norm_eps)

    def attention_input(self, x: np.ndarray) -> np.ndarray:
        """x (n, D) -> what the attention projects (n, D)."""
        return self.norm(x, "norm1") if self.recipe.norm_first else x

    def queries_keys_values(self, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """h (n, D) -> scaled queries (n, D) and [K | V] (n, 2 d_kv), two views of one array."""
        qkv = h @ self.w_qkv
        qkv += self.b_qkv
        return qkv[:, : self.config.d_model], qkv[:, self.config.d_model :]

    def keys_values(self, h: np.ndarray) -> np.ndarray:
        """h (n, D) -> [K | V] (n, 2 d_kv)."""
        return h @ self.w_kv + self.b_kv

    def output(self, x: np.ndarray, attended: np.ndarray) -> np.ndarray:
        """Block input x (n, D) and attention result (n, D) -> block output (n, D)."""
        x = x + self._linear(attended, "o")
        if not self.recipe.norm_first:
            x = self.norm(x, "norm1")
        inner = (self.norm(x, "norm2") if self.recipe.norm_first else x) @ self.w["fc1.weight"]
        self.kernels.activate(inner, self.w["fc1.bias"], self.config.activation)  # (n, d_ff), in place
        x += self._linear(inner, "fc2")
        return x if self.recipe.norm_first else self.norm(x, "norm2")

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        y = x @ self.w[f"{name}.weight"]
        y += self.w[f"{name}.bias"]
        return y
