"""The Transformer block that all families share, as operations on the rows a rank holds."""

from __future__ import annotations

from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.config import ModelConfig
from astra_mpi.device.memory import OWN, Memory
from astra_mpi.device.packed import Packed, is_narrow
from astra_mpi.device.scratch import Scratch
from astra_mpi.device.weights import (
    Matrix,
    Narrow,
    SideBySide,
    Weights,
    activated,
    add_linear,
    forget,
    linear,
    mlp_in_blocks,
    product,
    side_by_side,
)
from astra_mpi.kernels.rest import Rest
from astra_mpi.models.layers import Layers
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
        self,
        config: ModelConfig,
        recipe: Recipe,
        weights: Weights,
        kernels: ModuleType,
        scratch: Scratch,
        memory: Memory = OWN,
    ) -> None:
        """weights: this block's, by their names inside it."""
        self.config, self.recipe, self.kernels, self.scratch = config, recipe, kernels, scratch
        self.memory = memory
        self.w = dict(weights)
        self.layers = Layers(self.w, kernels, memory)
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
        """Bytes of all weights, as they are stored or packed."""
        replaced = self.layers.replaced
        return self.layers.nbytes + sum(weight.nbytes for name, weight in self.w.items() if name not in replaced)

    def make_ready(self) -> None:
        """Join and pack what products take, now and not in the first pass."""
        self.b_qkv  # noqa: B018 - joins the weights too
        for name in ("o", "fc1", "fc2", *(("gate",) if self.recipe.gated else ())):
            self.layers[name]

    @property
    def d_queries(self) -> int:
        """Width of the queries of a token."""
        return self.n_heads * self.config.d_head

    @cached_property
    def w_qkv(self) -> np.ndarray | Packed | SideBySide:
        """(D, H d + 2 d_kv). What is joined scales the queries by 1/sqrt(d_head) instead of every score."""
        if is_narrow(self.kernels):
            return self.layers.joined("qkv", (self.query_scale, 1.0, 1.0))
        q, k, v = (self.w[f"{name}.weight"] for name in "qkv")
        if any(isinstance(weight, Narrow) for weight in (q, k, v)):
            return SideBySide(q, k, v)
        joined = side_by_side([q * self.query_scale, k, v], self.memory)
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
    def _scale_and_bias(self) -> tuple[np.ndarray, np.ndarray]:
        """(H d + 2 d_kv,) each: what becomes of products with weights that are not joined."""
        scale = self.scratch.xp.ones_like(self.b_qkv)
        scale[: self.d_queries] = self.query_scale
        return scale, self.b_qkv * scale

    @cached_property
    def w_kv(self) -> Matrix:
        """(D, 2 d_kv): the projection to keys and values."""
        w_qkv = self.w_qkv
        if isinstance(w_qkv, Packed):
            columns = w_qkv.columns(self.d_queries)
            return self.layers.joined("kv", (1.0, 1.0)) if columns is None else columns
        return SideBySide(*w_qkv.matrices[1:]) if isinstance(w_qkv, SideBySide) else w_qkv[:, self.d_queries :]

    @property
    def stored_kv(self) -> Matrix:
        """`w_kv` as it is stored, to make float32 tables from."""
        packed = isinstance(self.w_qkv, Packed)
        return SideBySide(self.w["k.weight"], self.w["v.weight"]) if packed else self.w_kv

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
        qkv = self.scratch("qkv", len(h), self.w_qkv.shape[1])
        if isinstance(self.w_qkv, SideBySide):
            product(h, self.w_qkv, qkv, self.kernels, self.scratch)
            self.kernels.scale_add(qkv, *self._scale_and_bias)
        else:
            linear(h, self.w_qkv, qkv, self.kernels, self.scratch, self.b_qkv)
        queries, kv = qkv[:, : self.d_queries], qkv[:, self.d_queries :]
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
        kv = linear(h, self.w_kv, out, self.kernels, self.scratch, self.b_kv)
        if self.key_norm is not None:
            self.key_norm(kv[:, : kv.shape[1] // 2], self.kernels)
        return kv

    def output(self, x: np.ndarray, attended: np.ndarray) -> np.ndarray:
        """Block input x (n, D) and attention result (n, H d) -> block output, in x."""
        if self._rest is not None:
            normed, inner = self.scratch("normed", *x.shape), self.scratch("inner", len(x), self._rest.fc1.shape[1])
            if self.kernels.after_attention(x, attended, self._rest, normed, inner):
                return x
        return self._mlp(x, self._attention_added(x, attended))

    def _attention_added(self, x: np.ndarray, attended: np.ndarray) -> np.ndarray:
        """x (n, D) += what the last layer of the attention makes of (n, H d) -> what the MLP takes."""
        recipe, layer = self.recipe, self.layers["o"]
        if not isinstance(layer, Packed) or not (recipe.parallel or self._adds_plainly):
            return self.add_attention(x, self.product(attended, "o", "product"))
        if not recipe.parallel:
            layer.layer(attended, x, self.w.get("o.bias"), add=True)
            return self.norm(x, "norm2")
        h = self.norm(x, "norm1" if recipe.shared_norm else "norm2")
        layer.layer(attended, x, self.w.get("o.bias"), add=True)
        return h

    def _mlp(self, x: np.ndarray, h: np.ndarray) -> np.ndarray:
        """x (n, D) += MLP of h (n, D) -> block output, in x."""
        if self._adds_plainly:
            done = self._packed_mlp(h, x, self.w.get("fc2.bias"), add=True)
            if done is not None:
                return done
            weight = self.layers["fc2"]
            if isinstance(weight, np.ndarray):
                return add_linear(self.inner(h), weight, x, self.kernels, self.w.get("fc2.bias"))
        return self.add_mlp(x, self.mlp(h))

    def mlp(self, h: np.ndarray) -> np.ndarray:
        """h (n, D) -> what the MLP gives, without the bias of its last layer (n, D)."""
        out = self.scratch("product", len(h), self.layers["fc2"].shape[1])
        done = self._packed_mlp(h, out, None, add=False)
        if done is None:
            layers = self.layers["fc1"], self._gate, self.layers["fc2"]
            biases = self.w.get("fc1.bias"), self.w.get("gate.bias")
            done = mlp_in_blocks(h, layers, biases, self.config.activation, out, self.kernels)
        return self.product(self.inner(h), "fc2", "product") if done is None else done

    def _packed_mlp(self, h: np.ndarray, out: np.ndarray, bias: np.ndarray | None, add: bool) -> np.ndarray | None:
        """The MLP in one call, to `out` or added to it; None where its layers are not packed."""
        first, second, gate = self.layers["fc1"], self.layers["fc2"], self._gate
        if not (isinstance(first, Packed) and isinstance(second, Packed) and isinstance(gate, Packed | None)):
            return None
        inner = self.w.get("fc1.bias"), self.config.activation, gate, self.w.get("gate.bias")
        return first.layer_twice(h, out, *inner, second, bias, add)

    @cached_property
    def _rest(self) -> Rest | None:
        """All that follows attention, for kernels that compute it at once; of weights as the first pass has them."""
        recipe = self.recipe
        if not (self._adds_plainly and recipe.input_norms) or recipe.parallel or recipe.gated:
            return None
        return self.layers.rest(self.config.activation, self.config.norm_eps, recipe.rms)

    @property
    def _adds_plainly(self) -> bool:
        """Whether what attention and MLP give is added as it is, and the sum is what goes on."""
        return self.recipe.norm_first and not self.recipe.output_norms

    @property
    def _gate(self) -> Matrix | None:
        return self.layers["gate"] if self.recipe.gated else None

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
        weight, act = self.layers["fc1"], self.config.activation
        out, biases = self.scratch("inner", len(h), weight.shape[1]), (self.w.get("fc1.bias"), self.w.get("gate.bias"))
        return activated(h, weight, out, self.kernels, self.scratch, biases[0], act, self._gate, biases[1])

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
        weight = self.layers[linear]
        return product(x, weight, self.scratch(name, len(x), weight.shape[1]), self.kernels, self.scratch)
