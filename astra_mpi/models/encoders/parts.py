"""What checkpoints of rotary encoders have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.models.hf import Source
from astra_mpi.models.rope_settings import rope_fields, rope_settings


def encoder_fields(hf: HFConfig, activation: str, eps: str) -> dict[str, Any]:
    """Sizes of an `EncoderConfig`; activation, eps: their keys."""
    d_model, n_heads = hf.heads("hidden_size", "num_attention_heads")
    hf.only("head_dim", (None, d_model // n_heads), " (hidden_size / num_attention_heads)")
    return dict(
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        n_layers=hf.integer("num_hidden_layers"),
        d_ff=hf.integer("intermediate_size"),
        activation=hf.activation(activation),
        norm_eps=hf.number(eps),
        vocab_size=hf.integer("vocab_size"),
        max_positions=hf.integer("max_position_embeddings"),
    )


def biased(hf: HFConfig) -> tuple[str, ...]:
    """Linear layers with a bias, by the switches that Llama has too."""
    return ("q", "k", "v", "o") * hf.flag("attention_bias") + ("gate", "fc1", "fc2") * hf.flag("mlp_bias")


def rotary(hf: HFConfig, fields: dict[str, Any], theta: float = 10000.0) -> dict[str, Any]:
    """Rotary fields of a model of these sizes; theta: its class's default."""
    return rope_fields(rope_settings(hf, fields["max_positions"], fields["d_model"] // fields["n_heads"], theta))


def fused_rows(sources: dict[str, Source], parts: dict[str, int]) -> dict[str, Source]:
    """Sources of a block's layers that lie below each other in one tensor, in this order: layer -> its rows."""
    ends = np.cumsum(list(parts.values())).tolist()
    rows = {layer: slice(end - parts[layer], end) for layer, end in zip(parts, ends, strict=True)}
    made = dict(sources)
    for name, source in sources.items():
        layer = name.split(".")[2] if name.startswith("blocks.") else ""
        if layer in rows:
            made[name] = source._replace(rows=rows[layer], n_rows=ends[-1])
    return made


def without_biases(sources: dict[str, Source], *layers: str) -> dict[str, Source]:
    """Biases of these norms as zeros, where the checkpoint has none."""
    made = dict(sources)
    for name in sources:
        layer = name.removesuffix(".bias")
        if name.endswith(".bias") and (layer in layers or layer.split(".")[-1] in layers):
            made[name] = Source("")
    return made
