"""Layers of the oracle: float64, one line of mathematics each where that is possible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astra_mpi.oracle.narrow import EXACT, Rounding

Weights = Mapping[str, NDArray[Any]]
Array = NDArray[Any]


def attention(
    config: Any,
    q: Array,
    keys: Array,
    values: Array,
    visible: Array,
    added: Array,
    n_heads: int,
    rounding: Rounding = EXACT,
) -> Array:
    """softmax(cap(scale q k^T) + added + mask) v, head by head.

    q (rows, H d), keys and values (m, d_kv), visible (rows, m), added (H, rows, m). Several query heads may share a key
    head. rounding: in a narrow type, scaled queries, keys, values and weights (1 for the largest score) are bfloat16.
    """
    d_head = q.shape[1] // n_heads
    scale, cap = getattr(config, "score_scale", 0) or 1 / math.sqrt(d_head), getattr(config, "score_cap", 0)
    rounded = rounding.of_attention
    q, keys, values = rounded(q * scale), rounded(keys), rounded(values)
    sharers = q.shape[1] // max(keys.shape[1], 1)
    out = np.empty_like(q)
    for h in range(n_heads if len(q) else 0):
        head = slice(h * d_head, (h + 1) * d_head)
        read = slice(h // sharers * d_head, (h // sharers + 1) * d_head)
        scores = capped(q[:, head] @ keys[:, read].T, cap) + added[h]  # (rows, m)
        scores = np.where(visible, scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = rounded(shares) @ values[:, read] / shares.sum(axis=1, keepdims=True)
    return out


def capped(x: Array, cap: float) -> Array:
    return cap * np.tanh(x / cap) if cap else x


def linear(x: Array, weights: Weights, name: str, rounding: Rounding = EXACT) -> Array:
    made = rounding.product(x, weights[name + ".weight"].astype(np.float64))
    return made + weights.get(name + ".bias", np.zeros(()))


def normalised(x: Array, weights: Weights, name: str, eps: float) -> Array:
    """LayerNorm over the last axis, or where there is no bias RMSNorm."""
    if name + ".bias" not in weights:
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weights[name + ".weight"]
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * weights[name + ".weight"] + weights[name + ".bias"]


def activated(x: Array, name: str) -> Array:
    if name == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name in ("silu", "quick_gelu"):
        return x / (1 + np.exp(-x * (1.702 if name == "quick_gelu" else 1)))
    if name == "tanh":
        return np.tanh(x)
    return np.maximum(x, 0)
