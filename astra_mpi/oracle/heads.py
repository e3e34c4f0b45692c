"""What the oracle answers: logits, embeddings and classes from hidden states."""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.oracle.layers import Array, Weights, activated, attention, linear, normalised
from astra_mpi.oracle.narrow import EXACT, Rounding

#: families that answer for a text or an image; the others tell the next token
ENCODERS = ("vit", "bert", "encoder", "causal_encoder")


def answer(config: Any, weights: Weights, hidden: Array, rounding: Rounding = EXACT) -> Array:
    """Hidden states (n_class + T, D), or a decoder's logits (T, V) -> what a forward pass answers.

    rounding: of the classifier's product (`narrow.py`); poolers and projections are not rounded.
    """
    if config.family == "vit":
        return image_head(config, weights, hidden, rounding)
    if config.family not in ENCODERS:
        return hidden[-1] if len(hidden) else np.zeros(hidden.shape[1])
    output = _pooled(config, weights, hidden)
    if getattr(config, "n_classes", 0):
        return linear(output[None], weights, "head", rounding)[0]
    for i, name in enumerate(getattr(config, "dense_activations", ())):
        output = linear(output, weights, f"dense.{i}")
        output = output if name == "identity" else activated(output, name)
    output = output / np.linalg.norm(output) if config.normalize else output
    return output[: getattr(config, "embedding_size", 0) or None]


def _pooled(config: Any, weights: Weights, hidden: Array) -> Array:
    """(n_class + T, D) -> (D,): the mean over tokens, the first or last one, or a dense layer over one of these."""

    def dense(x: Array) -> Array:
        x = activated(linear(x, weights, "pooler"), getattr(config, "pooler_activation", "tanh"))
        return normalised(x, weights, "pooler.norm", config.norm_eps) if "pooler.norm.weight" in weights else x

    if config.pooling == "mean":
        return hidden.mean(axis=0)
    if config.pooling in ("cls", "last"):
        return hidden[0 if config.pooling == "cls" else -1]
    over = getattr(config, "pooler_over", "cls")
    if over == "each":
        return dense(hidden).mean(axis=0)
    return dense(hidden[0] if over == "cls" else hidden.mean(axis=0))


def image_head(config: Any, weights: Weights, hidden: Array, rounding: Rounding = EXACT) -> Array:
    """Logits or embedding of normalised rows hidden (n_class + T, D): class tokens and registers, then patches."""
    patches = hidden[getattr(config, "class_tokens", 1) + getattr(config, "registers", 0) :]
    pooling = getattr(config, "pooling", "cls")
    if pooling == "distilled":
        heads = zip(hidden[:2, None], ("head", "distilled"), strict=True)
        return sum((linear(row, weights, name, rounding)[0] for row, name in heads), np.zeros(())) / 2
    if pooling == "pooler" and config.pooler == "attention":
        pooled = _probed(config, weights, patches)
    elif pooling == "pooler":
        pooled = np.tanh(linear(hidden[0], weights, "pooler"))
    else:
        kinds = {"cls": [hidden[0]] if len(hidden) > len(patches) else [], "mean": [patches.mean(axis=0)]}
        pooled = np.concatenate([part for kind in pooling.split("+") for part in kinds[kind]])
    if config.n_classes > 0:
        return linear(pooled[None], weights, "head", rounding)[0]
    if getattr(config, "projection", 0):
        pooled = linear(pooled, weights, "projection")
    return pooled / np.linalg.norm(pooled) if getattr(config, "normalize", False) else pooled


def _probed(config: Any, weights: Weights, patches: Array) -> Array:
    """What a learned query gathers from all patches (T, D), and its MLP, (D,)."""
    query = linear(weights["pooler.probe"].astype(np.float64)[None], weights, "pooler.q")
    keys, values = (linear(patches, weights, f"pooler.{name}") for name in "kv")
    all_seen, added = np.ones((1, len(patches)), bool), np.zeros((config.n_heads, 1, len(patches)))
    gathered = attention(config, query, keys, values, all_seen, added, config.n_heads)
    gathered = linear(gathered, weights, "pooler.o")
    inner = linear(normalised(gathered, weights, "pooler.norm", config.norm_eps), weights, "pooler.fc1")
    pooled: Array = (gathered + linear(activated(inner, config.activation), weights, "pooler.fc2"))[0]
    return pooled
