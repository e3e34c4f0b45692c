"""A decoder of transformers as an ONNX file: ids, keys and values so far in; logits, all keys and values out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


class Step(nn.Module):
    """The model, with its cache as flat inputs and outputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, kept: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """ids (1, t) after keys and values (1, H, m, d) of m tokens -> logits (1, V), keys and values of m + t."""
        from transformers import DynamicCache

        cache = DynamicCache([(kept[i], kept[i + 1]) for i in range(0, len(kept), 2)])
        out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        after = [part for layer in out.past_key_values.layers for part in (layer.keys, layer.values)]
        return out.logits[:, -1], *after


def export(folder: Path, path: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    config = model.config
    d_head = config.hidden_size // config.num_attention_heads
    kept = [torch.zeros(1, config.num_key_value_heads, 5, d_head) for _ in range(2 * config.num_hidden_layers)]
    new, before = torch.export.Dim("new", min=1), torch.export.Dim("before", min=0)
    shapes = {"ids": {1: new}, "kept": [{2: before}] * len(kept)}
    torch.onnx.export(
        Step(model).eval(), (torch.ones(1, 3, dtype=torch.int64), kept), path, dynamo=True, dynamic_shapes=shapes
    )
