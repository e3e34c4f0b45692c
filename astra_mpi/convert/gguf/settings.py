"""Keys of config.json that follow from several keys of a GGUF file, from its tensors, or from llama.cpp's own code."""

from __future__ import annotations

from typing import Any

from astra_mpi.config import require
from astra_mpi.convert.gguf.metadata import Metadata
from astra_mpi.errors import InputError

Config = dict[str, Any]
#: blocks of the largest Gemma 2 and 3, whose scores are scaled otherwise: nothing else says so
_GEMMA2_27B, _GEMMA3_27B = 46, 62
#: every so many blocks of Gemma 3 see all tokens
_GEMMA3_PATTERN = 6


def biases(metadata: Metadata, config: Config) -> Config:
    return {"attention_bias": metadata.has("blk.0.attn_q.bias"), "mlp_bias": metadata.has("blk.0.ffn_up.bias")}


def head_width(metadata: Metadata, config: Config) -> Config:
    """For classes whose default is not hidden_size / num_attention_heads."""
    width = config["hidden_size"] // config["num_attention_heads"]
    return {"head_dim": metadata.integer("@.attention.key_length", width, least=1)}


def granite(metadata: Metadata, config: Config) -> Config:
    keys = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    return biases(metadata, config) | {name: metadata.number(f"@.{key}") for key, name in keys.items()}


def gemma2(metadata: Metadata, config: Config) -> Config:
    return _gemma(metadata, config, _GEMMA2_27B) | {
        "attn_logit_softcapping": metadata.number("@.attn_logit_softcapping"),
        "final_logit_softcapping": metadata.number("@.final_logit_softcapping"),
        "layer_types": _layer_types(config, 2),
    }


def gemma3(metadata: Metadata, config: Config) -> Config:
    pattern = metadata.integer("@.attention.sliding_window_pattern", _GEMMA3_PATTERN, least=1)
    everywhere: Config = {"rope_type": "default", "rope_theta": metadata.number("@.rope.freq_base", 1e6)}
    kind = metadata.text("@.rope.scaling.type", "none")
    require(kind in ("none", "linear"), f"{metadata.path}: rope.scaling.type = {kind} is not supported; only linear is")
    factor = metadata.number("@.rope.scaling.factor", 1.0)
    if factor != 1.0:
        everywhere |= {"rope_type": "linear", "factor": factor}
    near = {"rope_type": "default", "rope_theta": metadata.number("@.rope.freq_base_swa", 10000.0)}
    metadata.get("@.rope.dimension_count")
    return _gemma(metadata, config, _GEMMA3_27B) | {
        "attn_logit_softcapping": metadata.number("@.attn_logit_softcapping", None),
        "final_logit_softcapping": metadata.number("@.final_logit_softcapping", None),
        "layer_types": _layer_types(config, pattern),
        "rope_parameters": {"sliding_attention": near, "full_attention": everywhere},
    }


def _gemma(metadata: Metadata, config: Config, largest: int) -> Config:
    head = head_width(metadata, config)
    width = config["hidden_size"] // config["num_attention_heads"]
    scaled = width if config["num_hidden_layers"] == largest else head["head_dim"]
    window = metadata.integer("@.attention.sliding_window", least=1)
    return head | {"query_pre_attn_scalar": scaled, "sliding_window": window}


def _layer_types(config: Config, pattern: int) -> list[str]:
    n_blocks = min(config["num_hidden_layers"], 10_000)  # more are refused for want of tensors
    return ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(n_blocks)]


def phi3(metadata: Metadata, config: Config) -> Config:
    window = metadata.integer("@.attention.sliding_window", 0)
    return {"sliding_window": window or None}


def stablelm(metadata: Metadata, config: Config) -> Config:
    normed = metadata.has("blk.0.attn_q_norm.weight")
    require(not normed, f"{metadata.path} norms its queries, which is not supported for stablelm; use another model")
    return {
        "use_qkv_bias": metadata.has("blk.0.attn_q.bias"),
        "use_parallel_residual": metadata.flag("@.use_parallel_residual", True),
        "qk_layernorm": False,
    }


def gptneox(metadata: Metadata, config: Config) -> Config:
    return {
        "use_parallel_residual": metadata.flag("@.use_parallel_residual", True),
        "attention_bias": metadata.has("blk.0.attn_qkv.bias"),
    }


def bert(metadata: Metadata, config: Config) -> Config:
    causal = metadata.flag("@.attention.causal", False)
    require(not causal, f"{metadata.path}: {metadata.named('@.attention.causal')} = true is not supported for bert")
    model = metadata.text("tokenizer.ggml.model", "none")
    if model not in ("bert", "none"):
        raise InputError(
            f"{metadata.path} is a RoBERTa (a bert whose tokenizer is {model}), which is not supported as GGUF; convert"
            " the Hugging Face folder it was made from"
        )
    types = metadata.tensors["token_types.weight"].shape if metadata.has("token_types.weight") else (1,)
    return {"type_vocab_size": types[0]}
