"""The twin's poolings and heads of image encoders, as `astra_mpi.models.vision.pooling` has them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def image_answer(twin: Any, patches: Tensor, classes: Tensor) -> Tensor:
    """Normalised patches (B, S, D) and class tokens (B, n_class, D) -> logits (B, classes), or embeddings."""
    config = twin.config
    if config.pooling == "distilled":
        return (twin._linear(classes[:, 0], "head") + twin._linear(classes[:, 1], "distilled")) / 2
    features = _features(twin, patches, classes)
    if config.n_classes:
        return twin._linear(features, "head")
    if config.projection:
        features = twin._linear(features, "projection")
    return F.normalize(features, dim=-1) if config.normalize else features


def _features(twin: Any, patches: Tensor, classes: Tensor) -> Tensor:
    pooling = twin.config.pooling
    if pooling == "mean":
        return patches.mean(dim=1)
    if pooling == "cls+mean":
        return torch.cat([classes[:, 0], patches.mean(dim=1)], dim=-1)
    if pooling == "cls":
        return classes[:, 0]
    if twin.config.pooler == "tanh":
        return torch.tanh(twin._linear(classes[:, 0], "pooler"))
    heads = (twin.config.n_heads, -1)
    q = twin._linear(twin.w["pooler.probe"].expand(len(patches), 1, -1), "pooler.q")
    q, k, v = (
        x.unflatten(-1, heads).transpose(1, 2)
        for x in (q, twin._linear(patches, "pooler.k"), twin._linear(patches, "pooler.v"))
    )
    gathered = twin._linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, 0], "pooler.o")
    return gathered + twin._mlp(twin._norm(gathered, "pooler.norm"), "pooler.")
