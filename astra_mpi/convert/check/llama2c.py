"""A checkpoint of llama2.c as a LlamaForCausalLM, read independently of `astra_mpi.convert.llama2c`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def reference_of(path: Path) -> Any:
    """model.bin -> a model of transformers. The file has been read and checked by the conversion."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    header = np.fromfile(path, "<i4", 7).tolist()
    width, d_ff, n_layers, n_heads, n_kv_heads, vocab, positions = header
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=d_ff,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        vocab_size=abs(vocab),
        max_position_embeddings=positions,
        tie_word_embeddings=vocab > 0,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval().float()
    numbers, offset = np.fromfile(path, "<f4", offset=28), 0

    def take(*shape: int) -> Any:
        nonlocal offset
        n = int(np.prod(shape))
        offset += n
        return torch.from_numpy(numbers[offset - n : offset].reshape(shape).copy())

    def fill(parameter: Any, values: Any) -> None:
        assert parameter.shape == values.shape
        parameter.data = values

    kv = width // n_heads * n_kv_heads
    layers = model.model.layers
    fill(model.model.embed_tokens.weight, take(abs(vocab), width))
    for layer in layers:
        fill(layer.input_layernorm.weight, take(width))
    for name, rows, heads in (("q_proj", width, n_heads), ("k_proj", kv, n_kv_heads)):
        for layer in layers:
            # as in transformers' script for Meta's checkpoints: pairs of neighbours -> halves
            pairs = take(rows, width).view(heads, rows // heads // 2, 2, width)
            fill(getattr(layer.self_attn, name).weight, pairs.transpose(1, 2).reshape(rows, width))
    for name, rows in (("v_proj", kv), ("o_proj", width)):
        for layer in layers:
            fill(getattr(layer.self_attn, name).weight, take(rows, width))
    for layer in layers:
        fill(layer.post_attention_layernorm.weight, take(width))
    for name, shape in (("gate_proj", (d_ff, width)), ("down_proj", (width, d_ff)), ("up_proj", (d_ff, width))):
        for layer in layers:
            fill(getattr(layer.mlp, name).weight, take(*shape))
    fill(model.model.norm.weight, take(width))
    take(2, positions, width // n_heads // 2)  # cosines and sines
    if vocab < 0:
        fill(model.lm_head.weight, take(-vocab, width))
    return model
