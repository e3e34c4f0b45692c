"""ONNX Runtime as a contestant: a decoder of transformers as an ONNX file; keys and values handed from step to step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np


def prepare(files: Path, load: dict[str, Any]) -> Any:
    """-> run(ids (T,), new tokens) -> (tokens, (seconds, CPU seconds) at each)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(files / load["onnx"]), options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    kept_names = [one.name for one in inputs[1:]]
    heads, d_head = inputs[1].shape[1], inputs[1].shape[3]

    def run(ids: np.ndarray, n_new: int) -> tuple[list[int], list[tuple[float, float]]]:
        chosen, at = [], []
        kept = [np.zeros((1, heads, 0, d_head), np.float32)] * len(kept_names)
        new = ids[None].astype(np.int64)
        for _ in range(n_new):
            logits, *kept = session.run(None, {inputs[0].name: new, **dict(zip(kept_names, kept, strict=True))})
            chosen.append(int(logits[0].argmax()))
            new = np.array([chosen[-1:]], np.int64)
            at.append((time.perf_counter(), time.process_time()))
        return chosen, at

    return run


def export(folder: Path, path: Path) -> None:
    """ids (1, t), keys and values so far in; logits of the last token, all keys and values out."""
    import torch
    import transformers

    class Step(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, kept: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            """After keys and values (1, H, m, d) of m tokens -> logits (1, V), keys and values of m + t."""
            cache = transformers.DynamicCache([(kept[i], kept[i + 1]) for i in range(0, len(kept), 2)])
            out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            after = [part for layer in out.past_key_values.layers for part in (layer.keys, layer.values)]
            return out.logits[:, -1], *after

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    config = model.config
    d_head = config.hidden_size // config.num_attention_heads
    kept = [torch.zeros(1, config.num_key_value_heads, 5, d_head) for _ in range(2 * config.num_hidden_layers)]
    new, before = torch.export.Dim("new", min=1), torch.export.Dim("before", min=0)
    example = (torch.ones(1, 3, dtype=torch.int64), kept)
    shapes = {"ids": {1: new}, "kept": [{2: before}] * len(kept)}
    torch.onnx.export(Step(model).eval(), example, path, dynamo=True, dynamic_shapes=shapes)
