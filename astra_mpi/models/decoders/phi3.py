"""Phi-3 (arXiv 2404.14219): Llama with fused projections, a window, and longrope for long contexts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.models.decoder import tied_head
from astra_mpi.models.decoders.kin import (
    HARMLESS_KIN,
    LLAMA_BLOCK,
    Kin,
    KinConfig,
    guarded,
    halves,
    heads_of,
    n_layers_of,
    own_head_dim,
)
from astra_mpi.models.hf import Source, map_names
from astra_mpi.models.rope_settings import rope_fields, rope_settings
from astra_mpi.models.windows import sliding_window


@dataclass(frozen=True)
class Phi3Config(KinConfig):
    family: ClassVar[str] = "phi3"


class Phi3(Kin):
    Config = Phi3Config
    hf_block: ClassVar[Mapping[str, str]] = {
        **LLAMA_BLOCK,
        **dict.fromkeys("qkv", "self_attn.qkv_proj"),
        **dict.fromkeys(("gate", "fc1"), "mlp.gate_up_proj"),
    }

    reference = Reference(
        architectures=("Phi3ForCausalLM", "Phi3Model"),
        fields=dict(
            vocab_size=32064,
            hidden_size=3072,
            intermediate_size=8192,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=None,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attention_dropout=0.0,
            hidden_act="silu",
            max_position_embeddings=4096,
            original_max_position_embeddings=4096,
            initializer_range=0.02,
            rms_norm_eps=1e-5,
            use_cache=True,
            tie_word_embeddings=False,
            rope_parameters=None,
            bos_token_id=1,
            eos_token_id=32000,
            pad_token_id=32000,
            sliding_window=None,
        ),
        guarded=guarded("sliding_window"),
        harmless=HARMLESS_KIN,
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> Phi3Config:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        heads, n_layers = heads_of(hf, own_head_dim(hf)), n_layers_of(hf)
        positions, size = hf.integer("max_position_embeddings"), sliding_window(hf)
        older = {"su": "longrope", "yarn": "longrope"}  # as first releases called it
        rope = rope_settings(hf, positions, heads["d_head"], part=1.0, kinds=("default", "longrope"), older=older)
        return Phi3Config(
            **heads,
            n_layers=n_layers,
            d_ff=hf.integer("intermediate_size"),
            activation=hf.activation("hidden_act"),
            norm_eps=hf.number("rms_norm_eps"),
            vocab_size=hf.integer("vocab_size"),
            max_positions=positions,
            tied=tied_head(hf, tensors, "embed_tokens.weight"),
            **rope_fields(rope),
            windows=() if size is None else (size,) * n_layers,
        )

    @classmethod
    def hf_weights(cls, config: Any) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor: queries, keys and values in one, gate and up in another."""
        q, kv, f = config.d_queries, config.d_kv, config.d_ff
        parts = {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}
        fused = {name: (slice(*part), q + 2 * kv) for name, part in parts.items()}
        fused |= {"gate": (slice(0, f), 2 * f), "fc1": (slice(f, 2 * f), 2 * f)}
        mapped = map_names(cls.weight_shapes(config), dict(cls.hf_names), dict(cls.hf_block), "layers.{}")
        for name, source in mapped.items():
            layer = name.split(".")[-2]
            if name.startswith("blocks.") and layer in fused:
                rows, n_rows = fused[layer]
                mapped[name] = source._replace(rows=rows, n_rows=n_rows)
        return halves(config, mapped)
