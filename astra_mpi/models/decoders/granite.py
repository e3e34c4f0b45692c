"""Granite (IBM, 2024): Llama with multipliers of embedding, residual sums, scores and logits, all folded in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.models.decoders.kin import (
    HARMLESS_KIN,
    Kin,
    KinConfig,
    folded,
    guarded,
    heads_of,
    kin_fields,
    own_head_dim,
)
from astra_mpi.models.hf import Source


@dataclass(frozen=True)
class GraniteConfig(KinConfig):
    """Its multipliers are in the weights; they stay here because conversion needs them."""

    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0

    family: ClassVar[str] = "granite"


class Granite(Kin):
    Config = GraniteConfig

    reference = Reference(
        architectures=("GraniteForCausalLM", "GraniteModel"),
        fields=dict(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=None,
            hidden_act="silu",
            max_position_embeddings=2048,
            initializer_range=0.02,
            rms_norm_eps=1e-6,
            use_cache=True,
            pad_token_id=None,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
            rope_parameters=None,
            attention_bias=False,
            attention_dropout=0.0,
            mlp_bias=False,
            embedding_multiplier=1.0,
            logits_scaling=1.0,
            residual_multiplier=1.0,
            attention_multiplier=1.0,
        ),
        guarded=guarded(),
        harmless=HARMLESS_KIN,
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> GraniteConfig:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        names = ("embedding_multiplier", "logits_scaling", "residual_multiplier")
        multipliers: dict[str, Any] = {name: hf.number(name) for name in names}
        attention, mlp = hf.flag("attention_bias"), hf.flag("mlp_bias")
        return GraniteConfig(
            **kin_fields(hf, tensors, heads_of(hf, own_head_dim(hf))),
            **multipliers,
            biased=("q", "k", "v", "o") * attention + ("gate", "fc1", "fc2") * mlp,
            score_scale=hf.number("attention_multiplier"),
        )

    @classmethod
    def hf_weights(cls, config: Any) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor. The last norm takes what scales the logits."""
        mapped, scale = cls.hf_mapped(config), config.embedding_multiplier
        logits = 1 / (config.logits_scaling * (scale if config.tied else 1))
        residual = dict.fromkeys(("o", "fc2"), config.residual_multiplier)
        folded(mapped, {"embed.word": scale, "norm": logits, **residual})
        return mapped
