"""Gemma (arXiv 2403.08295), Gemma 2 (arXiv 2408.00118) and Gemma 3 (arXiv 2503.19786), their text models.

The embedding is scaled by sqrt(D) and norms multiply by 1 + weight: both are folded into the weights. A tied head reads
the scaled embedding, so that the last norm undoes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from astra_mpi.checkpoint.config import HFConfig, positive, shown
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require
from astra_mpi.models.decoder import tied_head
from astra_mpi.models.decoders.kin import (
    HARMLESS_KIN,
    LLAMA_BLOCK,
    Kin,
    KinConfig,
    folded,
    guarded,
    heads_of,
    kin_fields,
)
from astra_mpi.models.hf import Source
from astra_mpi.models.recipe import Recipe
from astra_mpi.models.rope_settings import local_and_global, rope_fields
from astra_mpi.models.windows import sliding_window, windows

_NORMS = ("norm", "norm1", "norm2", "post1", "post2", "q_norm", "k_norm")
_BLOCK = {
    **LLAMA_BLOCK,
    "post1": "post_attention_layernorm",
    "norm2": "pre_feedforward_layernorm",
    "post2": "post_feedforward_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
_FIELDS: dict[str, Any] = dict(
    vocab_size=256000,
    initializer_range=0.02,
    rms_norm_eps=1e-6,
    use_cache=True,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
    tie_word_embeddings=True,
    rope_parameters=None,
    attention_bias=False,
    attention_dropout=0.0,
    use_bidirectional_attention=None,
    head_dim=256,
)
_FIELDS2 = _FIELDS | dict(
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=256,
    sliding_window=4096,
    layer_types=None,
)


@dataclass(frozen=True)
class GemmaConfig(KinConfig):
    family: ClassVar[str] = "gemma"


@dataclass(frozen=True)
class Gemma2Config(KinConfig):
    family: ClassVar[str] = "gemma2"


@dataclass(frozen=True)
class Gemma3Config(KinConfig):
    family: ClassVar[str] = "gemma3_text"


class _Gemmas(Kin):
    @classmethod
    def hf_weights(cls, config: Any) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor, with the scale of the embedding and the offset of the norms."""
        mapped, scale = cls.hf_mapped(config), config.d_model**0.5
        undone = {"norm": 1 / scale} if config.tied else {}
        folded(mapped, {"embed.word": scale, **undone}, dict.fromkeys(_NORMS, 1.0))
        return mapped


def _biased(hf: HFConfig) -> tuple[str, ...]:
    hf.only("use_bidirectional_attention", (None, False))
    return ("q", "k", "v", "o") * hf.flag("attention_bias")


def _cap(hf: HFConfig, key: str) -> float:
    return 0.0 if hf.get(key) is None else positive(key, hf.get(key))


class Gemma(_Gemmas):
    Config = GemmaConfig

    reference = Reference(
        architectures=("GemmaForCausalLM", "GemmaModel"),
        fields=_FIELDS
        | dict(
            hidden_size=3072,
            intermediate_size=24576,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=16,
            hidden_act="gelu_pytorch_tanh",
            max_position_embeddings=8192,
        ),
        guarded=guarded(),
        harmless=HARMLESS_KIN,
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> GemmaConfig:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        fields = kin_fields(hf, tensors, heads_of(hf, hf.integer("head_dim")))
        if hf.get("hidden_act") == "gelu":  # as old releases write the other form
            fields["activation"] = "gelu_tanh"
        return GemmaConfig(**fields, biased=_biased(hf))


class Gemma2(_Gemmas):
    Config = Gemma2Config
    recipe = Recipe(norm_first=True, rms=True, gated=True, rotary=True, output_norms=True)
    hf_block = _BLOCK

    reference = Reference(
        architectures=("Gemma2ForCausalLM", "Gemma2Model"),
        fields=_FIELDS2 | dict(max_position_embeddings=8192, final_logit_softcapping=30.0, attn_logit_softcapping=50.0),
        guarded=guarded("sliding_window", "layer_types"),
        harmless=HARMLESS_KIN,
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> Gemma2Config:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        hf.heads("hidden_size", "num_attention_heads")
        fields = kin_fields(hf, tensors, heads_of(hf, hf.integer("head_dim")), act="hidden_activation")
        n_layers = fields["n_layers"]
        return Gemma2Config(
            **fields,
            biased=_biased(hf),
            score_scale=hf.number("query_pre_attn_scalar") ** -0.5,
            score_cap=_cap(hf, "attn_logit_softcapping"),
            logit_cap=_cap(hf, "final_logit_softcapping"),
            windows=windows(hf, n_layers, sliding_window(hf), [i % 2 == 0 for i in range(n_layers)]),
        )


class Gemma3(_Gemmas):
    Config = Gemma3Config
    recipe = Recipe(norm_first=True, rms=True, gated=True, rotary=True, output_norms=True, qk_norm="head")
    hf_block = _BLOCK

    reference = Reference(
        architectures=("Gemma3ForCausalLM", "Gemma3TextModel"),
        fields=_FIELDS2
        | dict(
            vocab_size=262208,
            max_position_embeddings=131072,
            final_logit_softcapping=None,
            attn_logit_softcapping=None,
            use_bidirectional_attention=False,
        ),
        guarded=guarded("sliding_window", "layer_types"),
        harmless={**HARMLESS_KIN, "_sliding_window_pattern": "layer_types say which blocks have a window"},
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> Gemma3Config:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        hf.heads("hidden_size", "num_attention_heads")
        heads, positions = heads_of(hf, hf.integer("head_dim")), hf.integer("max_position_embeddings")
        n_layers, pattern = hf.integer("num_hidden_layers"), hf.get("sliding_window_pattern")
        pattern = 6 if pattern is None else pattern
        good = type(pattern) is int and pattern >= 1
        require(good, f"sliding_window_pattern = {shown(pattern)} must be a positive integer")
        hf.only("attn_logit_softcapping", (None,))  # transformers does not apply it
        rope, local_theta = local_and_global(hf, positions, heads["d_head"])
        return Gemma3Config(
            **heads,
            n_layers=n_layers,
            d_ff=hf.integer("intermediate_size"),
            activation=hf.activation("hidden_activation"),
            norm_eps=hf.number("rms_norm_eps"),
            vocab_size=hf.integer("vocab_size"),
            max_positions=positions,
            tied=tied_head(hf, tensors, "embed_tokens.weight"),
            **rope_fields(rope),
            rope_local_theta=local_theta,
            biased=_biased(hf),
            score_scale=hf.number("query_pre_attn_scalar") ** -0.5,
            logit_cap=_cap(hf, "final_logit_softcapping"),
            windows=windows(hf, n_layers, sliding_window(hf), [bool((i + 1) % pattern) for i in range(n_layers)]),
        )
