"""The differentiable twin: what P ranks compute, in one process, with gradients.

The same arithmetic as the engine's (docs/explanation/training.md), written over the weights of a model file by their
canonical names. The ranks are masks over one set of rows (`View`): the replicas of the class token, then the content
places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from astra_mpi.codec.config import CodecConfig
from astra_mpi.config import require
from astra_mpi.models import FAMILIES
from astra_mpi.train.attend import Scores, attend, attend_by_slices, turned
from astra_mpi.train.cuts import View
from astra_mpi.train.image_heads import image_answer

Weights = dict[str, Tensor]
#: of a block: which keys rows see (.., 1, R, m); cosines and sines of its rotary positions (R, d_head), if it has any
Seen = tuple[Tensor, Tensor | None]
_CLASS_TOKENS = ("embed.class", "embed.distillation")


class Send(Protocol):
    """What stands for the exchanges of a pass; `carried` is what one block's leaves for the next."""

    carried: tuple[Tensor, Tensor]

    def __call__(self, i: int, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Block i's rows (B, S, width) at the site, one tensor or two -> how far ranks see them."""


class Twin:
    """A model's weights as tensors. Answers are the engine's: see `__call__`.

    recomputes: blocks keep nothing but their inputs for the gradient, and are computed again. `halves` has the matrices
    in bfloat16 of a model that does not learn, for products under autocast.
    """

    recomputes = False

    def __init__(self, config: Any, weights: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        self.config, self.family = config, FAMILIES[config.family]
        self.recipe, self.causal = self.family.recipe_of(config), self.family.causal
        require(
            getattr(config, "rope_type", "") != "longrope",
            "a model with longrope is not trained: its tokens turn by other angles in long sequences",
        )
        require(
            config.family != "causal_encoder" and getattr(config, "pooling", "") != "last",
            "a model that embeds by its last token is not trained; train the decoder, or give an encoder",
        )
        require(not self.recipe.relative, "a model with biases by distance is not trained; give one without")
        self.w: Weights = {name: torch.tensor(np.asarray(array), device=device) for name, array in weights.items()}
        self.device = torch.device(device)
        self.halves: Weights = {}

    def __call__(self, inputs: Tensor, view: View, send: Send | None = None, site: str = "hidden") -> Tensor:
        """Images (B, channels, height, width) -> logits (B, classes); ids (B, S), or ids and types (B, S, 2) -> BERT:
        embeddings (B, D) or logits (B, classes), decoders: logits (B, S, V). `send` stands for what is sent at `site`
        where the view has far rows.
        """
        return self._head(self.rows(inputs, view, send, site), view)

    def halve(self) -> None:
        """From now on autocast has nothing to round in each pass; for a model that does not learn."""
        self.halves = {name: t.bfloat16() for name, t in self.w.items() if t.ndim == 2 and name != "embed.position"}

    def rows(self, inputs: Tensor, view: View, send: Send | None = None, site: str = "hidden") -> Tensor:
        """The rows (B, R, D) after the last block, before any norm."""
        x = self.embed(inputs)
        n_class, places = self.config.n_class, np.arange(x.shape[1])
        each = view.n_replicas // max(1, n_class)
        x = torch.cat([x[:, :n_class].repeat_interleave(each, dim=1), x[:, n_class:]], dim=1)
        places = np.concatenate([np.repeat(places[:n_class], each), places[n_class:]])
        for i in range(self.config.n_layers):
            seen = self._seen(i, view, places), self._turns(i, places)
            x = self._passed(i, x, view, seen, None if view.far is None else send, site)
        return x

    def _passed(self, i: int, x: Tensor, view: View, seen: Seen, send: Send | None, site: str) -> Tensor:
        """`_block`, which is computed again for its gradients if `recomputes`."""
        if not (self.recomputes and torch.is_grad_enabled()):
            return self._block(i, x, view, seen, send, site)

        def block(x: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
            if send is None:
                return (self._block(i, x, view, seen, None, site),)
            send.carried = carried[0], carried[1]
            x = self._block(i, x, view, seen, send, site)
            return (x, *send.carried)

        x, *carried = checkpoint(block, x, *(send.carried if send else ()), use_reentrant=False)
        if send is not None:
            send.carried = carried[0], carried[1]
        return x

    def sinks(self, codec: CodecConfig | None) -> int:
        """First tokens that every rank computes itself."""
        return codec.sinks if codec is not None and self.causal and not self.config.n_class else 0

    def embed(self, inputs: Tensor) -> Tensor:
        """-> (B, n_class + S, D)."""
        w, config = self.w, self.config
        if config.family == "vit":
            c, p, (gh, gw) = config.channels, config.patch_size, config.grid
            inputs = inputs[:, :, : gh * p, : gw * p]
            patches = inputs.reshape(len(inputs), c, gh, p, gw, p).permute(0, 2, 4, 1, 3, 5)
            x = self._linear(patches.reshape(len(inputs), gh * gw, c * p * p), "embed.patch")
            n = config.class_tokens
            tokens = [w[name][None] + w["embed.position"][k] for k, name in enumerate(_CLASS_TOKENS[:n])]
            if config.registers:
                tokens.append(w["embed.registers"])
            front = [torch.cat(tokens).expand(len(x), -1, -1)] if tokens else []
            x = torch.cat([*front, x + w["embed.position"][n:]], dim=1)
            return self._norm(x, "embed.norm") if config.embed_norm else x
        ids, types = (inputs[..., 0], inputs[..., 1]) if inputs.ndim == 3 else (inputs, None)
        x = F.embedding(ids, w["embed.word"])
        if "embed.norm.weight" in w or "embed.type" in w:
            return self._embed_bert(x, ids, types)
        return x + w["embed.position"][: ids.shape[1]] if "embed.position" in w else x

    def _embed_bert(self, x: Tensor, ids: Tensor, types: Tensor | None) -> Tensor:
        """Word embeddings x (B, S, width) of `ids` -> (B, S, D)."""
        w, config = self.w, self.config
        if config.pad_token >= 0:
            others = ids != config.pad_token
            x = x + F.embedding(others.cumsum(dim=1) * others, w["embed.position"])
        elif "embed.position" in w:
            x = x + w["embed.position"][: ids.shape[1]]
        if config.type_vocab:
            x = x + (w["embed.type"][0] if types is None else F.embedding(types, w["embed.type"]))
        x = self._norm(x, "embed.norm") if "embed.norm.weight" in w else x
        return self._linear(x, "embed.project") if config.word_width else x

    def _block(self, i: int, x: Tensor, view: View, seen: Seen, send: Send | None, site: str) -> Tensor:
        """Pre-norm: x + f(norm(x)); post-norm (BERT): norm(x + f(x)). x (B, R, D)."""
        b, recipe = f"blocks.{i}.", self.recipe
        first = recipe.norm_first
        plain = not recipe.normalises_input or b + "norm1.weight" not in self.w
        normed = x if plain else self._norm(x, b + "norm1")
        q, k, v = (self._linear(normed, b + name) for name in "qkv")
        q, k = self._head_norm(q, b + "q_norm"), self._head_norm(k, b + "k_norm")
        if send is not None:
            k_far, v_far = self._far(i, x, normed, k, v, view.n_replicas, send, site)
            k, v = torch.cat([k, k_far], dim=1), torch.cat([v, v_far], dim=1)
        entering = x
        y = self._linear(self._attention(i, q, k, v, view, seen), b + "o")
        x = x + (self._norm(y, b + "post1") if recipe.output_norms else y)
        x = x if first else self._norm(x, b + "norm1")
        entering = entering if recipe.parallel else x
        if recipe.normalises_input:
            entering = normed if recipe.shared_norm else self._norm(entering, b + "norm2")
        y = self._mlp(entering, b)
        x = x + (self._norm(y, b + "post2") if recipe.output_norms else y)
        return x if first else self._norm(x, b + "norm2")

    def _mlp(self, h: Tensor, prefix: str) -> Tensor:
        """Of a block, or of a head; with a gate where there is one."""
        inner, act = self._linear(h, prefix + "fc1"), self.config.activation
        if prefix + "gate.weight" in self.w:
            inner = inner * _activate(self._linear(h, prefix + "gate"), act)
        else:
            inner = _activate(inner, act)
        return self._linear(inner, prefix + "fc2")

    def _far(
        self, i: int, x: Tensor, normed: Tensor, k: Tensor, v: Tensor, n_replicas: int, send: Send, site: str
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (B, S, d_kv) made from what is sent of the content rows (arXiv 2505.19342, Eq. 1)."""
        if site == "kv":
            k_far, v_far = send(i, (k[:, n_replicas:], v[:, n_replicas:]))
            return k_far, v_far
        (seen,) = send(i, ((x if site == "hidden" else normed)[:, n_replicas:],))
        if site == "hidden" and self.recipe.normalises_input and f"blocks.{i}.norm1.weight" in self.w:
            seen = self._norm(seen, f"blocks.{i}.norm1")
        k_far = self._head_norm(self._linear(seen, f"blocks.{i}.k"), f"blocks.{i}.k_norm")
        return k_far, self._linear(seen, f"blocks.{i}.v")

    def _attention(self, i: int, q: Tensor, k: Tensor, v: Tensor, view: View, seen: Seen) -> Tensor:
        """softmax(cap(scale q k^T)) v over visible keys; q (B, R, H d), k and v (B, m, d_kv)."""
        visible, turns = seen
        heads = [x.unflatten(-1, (-1, self.config.d_head)).transpose(1, 2) for x in (q, k, v)]  # (B, H, rows, d)
        if turns is not None:
            rows = q.shape[1]  # far keys are those of the content rows, in the same order
            heads[0] = turned(heads[0], turns)
            far = turns[rows - (heads[1].shape[2] - rows) :] if heads[1].shape[2] > rows else turns[:0]
            heads[1] = turned(heads[1], torch.cat([turns, far]))
        scores = Scores.of(self.config, narrow=q.dtype == torch.bfloat16 and q.device.type == "cpu")
        if view.slices and not self.config.window(i):
            out = attend_by_slices(heads, view, scores)
        else:
            out = attend(heads, visible, scores)
        return out.transpose(1, 2).flatten(2)

    def _turns(self, i: int, places: np.ndarray) -> Tensor | None:
        """(R, d_head): cosines and sines of block i's rotary positions, of rows at `places` (R,); None: none."""
        rope = self.config.rope_of(i) if self.recipe.rotary else None
        return None if rope is None else torch.from_numpy(rope.turns(places, self.config.d_head)).to(self.device)

    def _seen(self, i: int, view: View, places: np.ndarray) -> Tensor:
        """(.., 1, R, R + S): what rows see in block i, inside its window."""
        visible, window = view.visible(i), self.config.window(i)
        if not window:
            return visible
        keys = np.concatenate([places, places[view.n_replicas :]])[: visible.shape[-1]]
        near = abs(places[:, None] - keys[None, :]) < window
        return visible & torch.from_numpy(near).to(self.device)

    def _head_norm(self, x: Tensor, name: str) -> Tensor:
        """Queries or keys (B, rows, H d), normalised where the model does; see `HeadNorm`."""
        kind, eps = self.recipe.qk_norm, self.config.norm_eps
        if not kind:
            return x
        weight = self.w[name + ".weight"]
        if kind == "whole":
            return F.rms_norm(x.float(), weight.shape, weight, eps)
        heads = x.float().unflatten(-1, (-1, self.config.d_head))
        if kind == "head":
            return F.rms_norm(heads, weight.shape, weight, eps).flatten(-2)
        return F.layer_norm(heads, heads.shape[-1:], eps=eps).flatten(-2) * weight

    def _head(self, x: Tensor, view: View) -> Tensor:
        config = self.config
        if self.causal:
            return self.logits(x)
        if config.family == "vit":
            return image_answer(self, self._norm(x[:, view.n_replicas :], "norm"), self._classes(x, view))
        return self._pooled(x, view)

    def logits(self, x: Tensor) -> Tensor:
        """A decoder's rows (.., D) after the last block -> (.., V)."""
        config, x = self.config, self._norm(x, "norm")
        logits = F.linear(x, self._matrix("embed.word") if config.tied else self._matrix("head.weight").T)
        return config.logit_cap * torch.tanh(logits / config.logit_cap) if config.logit_cap else logits

    def _pooled(self, x: Tensor, view: View) -> Tensor:
        """Rows (B, R, D) of an encoder of texts -> embeddings (B, D) or logits (B, classes)."""
        config, dense = self.config, self.config.pooling == "pooler"
        if config.n_class:
            pooled = self._last_norm(x[:, : view.n_replicas].mean(dim=1))
        else:
            x = self._last_norm(x)
            x = self._dense(x) if config.pooler_over == "each" and dense else x
            kept = (view.rank >= 0).unsqueeze(-1)  # (B, S, 1)
            pooled = (x * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
        if dense and config.pooler_over != "each":
            pooled = self._dense(pooled)
        if config.n_classes:
            return self._linear(pooled, "head")
        for i, act in enumerate(config.dense_activations):
            pooled = self._linear(pooled, f"dense.{i}")
            pooled = pooled if act == "identity" else torch.tanh(pooled) if act == "tanh" else _activate(pooled, act)
        pooled = F.normalize(pooled, dim=-1) if config.normalize else pooled
        return pooled[:, : config.embedding_size or None]

    def _classes(self, x: Tensor, view: View) -> Tensor:
        """Class tokens and registers (B, n_class, D), averaged over their replicas, normalised."""
        n_class = self.config.n_class
        if not n_class:
            return x[:, :0]
        return self._norm(x[:, : view.n_replicas].unflatten(1, (n_class, -1)).mean(dim=2), "norm")

    def _last_norm(self, x: Tensor) -> Tensor:
        return self._norm(x, "norm") if "norm.weight" in self.w else x

    def _dense(self, x: Tensor) -> Tensor:
        """The layer before a classifier."""
        x, act = self._linear(x, "pooler"), self.config.pooler_activation
        x = torch.tanh(x) if act == "tanh" else _activate(x, act)
        return self._norm(x, "pooler.norm") if self.config.pooler_norm else x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._matrix(name + ".weight").T, self.w.get(name + ".bias"))

    def _matrix(self, name: str) -> Tensor:
        narrow = self.halves.get(name) if torch.is_autocast_enabled(self.device.type) else None
        return self.w[name] if narrow is None else narrow

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """LayerNorm, or where there is no bias RMSNorm, in float32."""
        weight, bias, eps = self.w[name + ".weight"], self.w.get(name + ".bias"), self.config.norm_eps
        if self.recipe.rms:
            return F.rms_norm(x.float(), weight.shape, weight, eps)
        return F.layer_norm(x.float(), weight.shape, weight, bias, eps)


def _activate(x: Tensor, name: str) -> Tensor:
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if name == "gelu":
        return F.gelu(x)
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.relu(x) if name == "relu" else F.silu(x)


def trainable(w: Weights, learn: str) -> Sequence[str]:
    """Names of the weights that change: all, those of norms, or none."""
    return [name for name in w if learn == "all" or (learn == "norms" and "norm" in name)]
