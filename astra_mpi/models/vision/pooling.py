"""From rows to the answer of an image encoder: what ranks add up, and the heads on it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from astra_mpi.device.xp import module_of
from astra_mpi.layout import Layout
from astra_mpi.partition import displs

#: pooling -> how many class tokens it takes, and whether the mean of the patches; "pooler": what the checkpoint has
POOLINGS = {"cls": (1, False), "mean": (0, True), "pooler": (1, False), "cls+mean": (1, True), "distilled": (2, False)}
#: those that a classifier reads
CLASSIFIED = ("cls", "cls+mean", "distilled")
#: what a checkpoint may have beyond its class token: a tanh layer on it, or an attention over the patches
POOLERS = ("", "tanh", "attention")


def share(vit: Any, x: np.ndarray, layout: Layout) -> np.ndarray:
    """Rows (n, D) -> this rank's share of the closing sum, (B, share_width).

    Class tokens are averaged over their replicas before the last norm, patches added up after it.
    """
    config = vit.config
    if config.merged_heads:
        return _softmaxes(vit, vit.final(layout.content(x)), displs(layout.counts[:, layout.rank]))
    n_tokens, mean = POOLINGS[config.pooling]
    parts = [layout.class_share(x)[:, : n_tokens * config.d_model]] * bool(n_tokens)
    parts += [layout.content_sums(vit.final(x))] if mean else []
    return parts[0] if len(parts) == 1 else module_of(x).concatenate(parts, axis=1)


def answer(vit: Any, pooled: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Shares summed over ranks -> logits (B, classes), or embeddings (B, D or projection)."""
    config, xp = vit.config, module_of(pooled)
    features = _features(vit, pooled, lengths)
    if config.pooling == "distilled":
        tokens = features[:, : config.d_model], features[:, config.d_model :]
        return (linear(vit, tokens[0], "head") + linear(vit, tokens[1], "distilled")) / 2
    if config.n_classes:
        return linear(vit, features, "head")
    if config.projection:
        features = vit.product(features, "projection.weight")
    if config.normalize:
        features = features / xp.linalg.norm(features, axis=1, keepdims=True)
    return features


def linear(vit: Any, x: np.ndarray, name: str) -> np.ndarray:
    """x @ weight + bias of a layer, a new array."""
    y: np.ndarray = vit.product(x, f"{name}.weight") + vit.w[f"{name}.bias"]
    return y


def _features(vit: Any, pooled: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """-> (B, D), or (B, 2 D) of two class tokens or a class token and a mean."""
    config, xp, d = vit.config, module_of(pooled), vit.config.d_model
    if config.merged_heads:
        return _attention_output(vit, pooled)
    n_tokens, mean = POOLINGS[config.pooling]
    parts = [vit.final(xp.ascontiguousarray(pooled[:, i * d : (i + 1) * d])) for i in range(n_tokens)]
    if mean:
        parts.append(pooled[:, n_tokens * d :] / xp.asarray(lengths[:, None].astype(np.float32)))
    features = parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=1)
    return xp.tanh(linear(vit, features, "pooler")) if config.pooling == "pooler" else features


def _softmaxes(vit: Any, x: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The probe's attention to normalised patches x (n, D), those of image s at offsets[s]:offsets[s + 1].

    -> (B, D + 2 H): weighted values, maxima of the scores, sums of the weights, as `Exchange.merge` takes them.
    """
    config, xp, n_images = vit.config, module_of(x), len(offsets) - 1
    heads, d = config.n_heads, config.d_head
    query = linear(vit, vit.w["pooler.probe"][None], "pooler.q") * x.dtype.type(d**-0.5)
    q, k, v = (
        y.reshape(-1, heads, d).transpose(1, 0, 2) for y in (query, *(linear(vit, x, f"pooler.{n}") for n in "kv"))
    )
    values = xp.zeros((n_images, heads, 1, d), np.float32)
    peaks, sums = xp.full((n_images, heads, 1), -np.inf, np.float32), xp.zeros((n_images, heads, 1), np.float32)
    for s, (a, b) in enumerate(pairwise(offsets)):
        if a < b:
            vit.kernels.attend(q, k[:, a:b], v[:, a:b], None, None, values[s], peaks[s], sums[s])
    return xp.concatenate([part.reshape(n_images, -1) for part in (values, peaks, sums)], axis=1)


def _attention_output(vit: Any, attended: np.ndarray) -> np.ndarray:
    """What the probe gathered (B, D) -> the pooled embedding (B, D)."""
    y = linear(vit, attended, "pooler.o")
    normed = vit.kernels.layer_norm(y, vit.w["pooler.norm.weight"], vit.w["pooler.norm.bias"], vit.config.norm_eps)
    inner = vit.product(normed, "pooler.fc1.weight")
    vit.kernels.activate(inner, vit.w["pooler.fc1.bias"], vit.config.activation)
    return y + linear(vit, inner, "pooler.fc2")


def head_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Weights of poolers and heads."""
    d, f, n = config.d_model, config.d_ff, config.n_classes
    layers: dict[str, tuple[int, int]] = {}
    if n:
        layers["head"] = (d * (2 if config.pooling == "cls+mean" else 1), n)
    if config.pooling == "distilled":
        layers["distilled"] = (d, n)
    if config.pooler == "tanh":
        layers["pooler"] = (d, d)
    if config.pooler == "attention":
        layers |= {f"pooler.{name}": (d, d) for name in "qkvo"} | {"pooler.fc1": (d, f), "pooler.fc2": (f, d)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[1:]}
    if config.pooler == "attention":
        shapes |= {"pooler.probe": (d,), "pooler.norm.weight": (d,), "pooler.norm.bias": (d,)}
    if config.projection:
        shapes["projection.weight"] = (d, config.projection)
    return shapes
