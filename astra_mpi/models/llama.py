"""Llama (arXiv 2302.13971, 2407.21783): pre-RMSNorm blocks, rotary positions, grouped queries, SwiGLU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import GUARDED_DECODER, Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require
from astra_mpi.device.xp import take
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.models.decoder import Decoder, DecoderConfig, causal_layers, embedding_shapes, tied_head
from astra_mpi.models.hf import Source, map_names
from astra_mpi.models.recipe import Recipe, Shapes, block_shapes
from astra_mpi.models.rope_settings import rope_fields, rope_settings
from astra_mpi.models.rotary import Rotary, RotaryConfig


@dataclass(frozen=True)
class LlamaConfig(RotaryConfig, DecoderConfig):
    """`DecoderConfig` plus rotary positions (see `Rope`) and which layers have a bias."""

    attention_bias: bool = False  # q, k, v and o
    mlp_bias: bool = False  # gate, fc1 and fc2

    family: ClassVar[str] = "llama"

    @property
    def unbiased(self) -> str | tuple[str, ...]:
        """Linear layers without a bias."""
        return ("q", "k", "v", "o") * (not self.attention_bias) + ("gate", "fc1", "fc2") * (not self.mlp_bias)


Preset = Callable[[int | None], LlamaConfig]


class Llama(Rotary, Decoder):
    """Embedding and head; the blocks are shared (`Block`)."""

    Config = LlamaConfig
    recipe = Recipe(norm_first=True, rms=True, gated=True, rotary=True)
    default_site = "kv"
    config: LlamaConfig

    def embed(self, batch: Batch, layout: Layout) -> np.ndarray:
        """-> rows (n, D) of this rank."""
        return take(self.w["embed.word"], batch.values[self.tokens_here(batch, layout)])

    @staticmethod
    def weight_shapes(config: LlamaConfig) -> Shapes:
        blocks = block_shapes(config, Llama.recipe, config.unbiased)
        return embedding_shapes(config) | {"norm.weight": (config.d_model,)} | blocks

    reference = Reference(
        architectures=("LlamaForCausalLM", "LlamaModel"),
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
            pretraining_tp=1,
            tie_word_embeddings=False,
            rope_parameters=None,
            attention_bias=False,
            attention_dropout=0.0,
            mlp_bias=False,
            head_dim=None,
        ),
        guarded=GUARDED_DECODER,
        harmless={
            "id2label": "belongs to a head that is not converted",
            "num_labels": "belongs to a head that is not converted",
        },
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> LlamaConfig:
        """Hugging Face Llama config.json -> config. InputError on what is not supported."""
        d_model, n_heads = hf.heads("hidden_size", "num_attention_heads")
        hf.only("head_dim", (None, d_model // n_heads), " (hidden_size / num_attention_heads)")
        n_kv_heads = n_heads if hf.get("num_key_value_heads") is None else hf.integer("num_key_value_heads")
        require(
            n_heads % n_kv_heads == 0,
            f"num_attention_heads = {n_heads} is not a multiple of num_key_value_heads = {n_kv_heads}",
        )
        positions = hf.integer("max_position_embeddings")
        rope = rope_settings(hf, positions, d_model // n_heads)
        return LlamaConfig(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            n_layers=causal_layers(hf, "num_hidden_layers"),
            d_ff=hf.integer("intermediate_size"),
            activation=hf.activation("hidden_act"),
            norm_eps=hf.number("rms_norm_eps"),
            vocab_size=hf.integer("vocab_size"),
            max_positions=positions,
            tied=tied_head(hf, tensors, "embed_tokens.weight"),
            **rope_fields(rope),
            attention_bias=hf.flag("attention_bias"),
            mlp_bias=hf.flag("mlp_bias"),
        )

    hf_prefix = "model."
    hf_anchor = "norm.weight"
    hf_blocks = ("layers.",)
    hf_constants = (".rotary_emb.inv_freq", "lm_head.weight")

    @staticmethod
    def hf_weights(config: LlamaConfig) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor."""
        names = {"embed.word": "embed_tokens.weight", "norm": "norm", "head": "lm_head"}
        block = {name: f"self_attn.{name}_proj" for name in "qkvo"}
        block |= {"gate": "mlp.gate_proj", "fc1": "mlp.up_proj", "fc2": "mlp.down_proj"}
        block |= {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
        return map_names(Llama.weight_shapes(config), names, block, "layers.{}")

    PRESETS: ClassVar[dict[str, Preset]] = {}


def _preset(d_model: int, n_heads: int, n_layers: int, d_ff: int, positions: int, **settings: Any) -> Preset:
    """Settings as those of Llama 3, unless given."""
    shape: dict[str, Any] = dict(d_model=d_model, n_heads=n_heads, n_layers=n_layers, d_ff=d_ff)
    shape |= dict(activation="silu", norm_eps=1e-5, n_kv_heads=8, vocab_size=128256, rope_theta=500000.0)

    def make(n_tokens: int | None) -> LlamaConfig:
        wanted = positions if n_tokens is None else n_tokens
        require(wanted >= 1, f"--tokens {wanted}: at least one")
        return LlamaConfig(**shape | settings, max_positions=max(positions, wanted))

    return make


Llama.PRESETS.update(
    {
        "llama-tiny": _preset(128, 4, 2, 344, 2048, n_kv_heads=2, vocab_size=32000),
        "llama-3.2-1b": _preset(2048, 32, 16, 8192, 131072, rope_type="llama3", rope_factor=32.0),
        "llama-3-8b": _preset(4096, 32, 32, 14336, 8192, tied=False),
    }
)
