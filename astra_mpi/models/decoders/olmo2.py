"""OLMo 2 (arXiv 2501.00656): Llama that normalises what attention and MLP give instead of what they take, and queries
and keys over all heads together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

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


@dataclass(frozen=True)
class Olmo2Config(KinConfig):
    family: ClassVar[str] = "olmo2"


class Olmo2(Kin):
    Config = Olmo2Config
    recipe = Recipe(
        norm_first=True, rms=True, gated=True, rotary=True, input_norms=False, output_norms=True, qk_norm="whole"
    )
    hf_block: ClassVar[Mapping[str, str]] = {
        **LLAMA_BLOCK,
        "post1": "post_attention_layernorm",
        "post2": "post_feedforward_layernorm",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
    }

    reference = Reference(
        architectures=("Olmo2ForCausalLM", "Olmo2Model"),
        fields=dict(
            vocab_size=50304,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=None,
            hidden_act="silu",
            max_position_embeddings=2048,
            initializer_range=0.02,
            use_cache=True,
            pad_token_id=1,
            bos_token_id=None,
            eos_token_id=50279,
            tie_word_embeddings=False,
            rope_parameters=None,
            attention_bias=False,
            attention_dropout=0.0,
            rms_norm_eps=1e-5,
        ),
        guarded=guarded(),
        harmless=HARMLESS_KIN,
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> Olmo2Config:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        biased = ("q", "k", "v", "o") * hf.flag("attention_bias")
        return Olmo2Config(**kin_fields(hf, tensors, heads_of(hf, own_head_dim(hf))), biased=biased)
