"""Qwen2 (arXiv 2407.10671), Llama with biases of queries, keys and values, and Qwen3 (arXiv 2505.09388), which
normalises queries and keys head by head instead. Both may have windows in their last blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.models.decoders.kin import (
    HARMLESS_KIN,
    LLAMA_BLOCK,
    Kin,
    KinConfig,
    guarded,
    heads_of,
    kin_fields,
    own_head_dim,
)
from astra_mpi.models.recipe import Recipe
from astra_mpi.models.windows import sliding_window, windows

_FIELDS: dict[str, Any] = dict(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=22016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    hidden_act="silu",
    max_position_embeddings=32768,
    initializer_range=0.02,
    rms_norm_eps=1e-6,
    use_cache=True,
    tie_word_embeddings=False,
    rope_parameters=None,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
    layer_types=None,
    attention_dropout=0.0,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)
_WINDOWS = ("sliding_window", "layer_types")


@dataclass(frozen=True)
class Qwen2Config(KinConfig):
    family: ClassVar[str] = "qwen2"


@dataclass(frozen=True)
class Qwen3Config(KinConfig):
    family: ClassVar[str] = "qwen3"


def _windows(hf: HFConfig, n_layers: int) -> tuple[int, ...]:
    size = sliding_window(hf)
    size = size if hf.flag("use_sliding_window") else None
    first = hf.integer("max_window_layers", at_least=0)
    return windows(hf, n_layers, size, [size is not None and i >= first for i in range(n_layers)])


class Qwen2(Kin):
    Config = Qwen2Config

    reference = Reference(
        architectures=("Qwen2ForCausalLM", "Qwen2Model"),
        fields=_FIELDS,
        guarded=guarded(*_WINDOWS) | {"head_dim": ()},
        harmless=HARMLESS_KIN,
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> Qwen2Config:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        fields = kin_fields(hf, tensors, heads_of(hf, own_head_dim(hf)))
        return Qwen2Config(**fields, biased=("q", "k", "v"), windows=_windows(hf, fields["n_layers"]))


class Qwen3(Kin):
    Config = Qwen3Config
    recipe = Recipe(norm_first=True, rms=True, gated=True, rotary=True, qk_norm="head")
    hf_block: ClassVar[Mapping[str, str]] = {**LLAMA_BLOCK, "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}

    reference = Reference(
        architectures=("Qwen3ForCausalLM", "Qwen3Model"),
        fields=_FIELDS | dict(head_dim=128, attention_bias=False),
        guarded=guarded(*_WINDOWS),
        harmless=HARMLESS_KIN,
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> Qwen3Config:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        fields = kin_fields(hf, tensors, heads_of(hf, hf.integer("head_dim")))
        biased = ("q", "k", "v", "o") * hf.flag("attention_bias")
        return Qwen3Config(**fields, biased=biased, windows=_windows(hf, fields["n_layers"]))
