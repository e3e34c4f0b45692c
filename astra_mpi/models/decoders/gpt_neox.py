"""GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): LayerNorm, a quarter of each head turned, attention and
MLP side by side; queries, keys and values in one matrix, head by head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.models.decoders.kin import (
    HARMLESS_KIN,
    Kin,
    KinConfig,
    guarded,
    halves,
    heads_of,
    kin_fields,
)
from astra_mpi.models.hf import Source, map_names
from astra_mpi.models.recipe import Recipe

_ROPE_NAMES = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}


def _heads(hf: HFConfig) -> dict[str, Any]:
    heads = heads_of(hf)
    hf.only("head_dim", (None, heads["d_head"]), " (hidden_size / num_attention_heads)")
    return heads


@dataclass(frozen=True)
class GPTNeoXConfig(KinConfig):
    family: ClassVar[str] = "gpt_neox"


class GPTNeoX(Kin):
    Config = GPTNeoXConfig
    recipe = Recipe(norm_first=True, rotary=True)
    hf_prefix = "gpt_neox."
    hf_anchor = "embed_in.weight"
    hf_constants = (
        *(".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias", ".attention.rotary_ndims"),
        "embed_out.weight",
    )
    hf_names: ClassVar[Mapping[str, str]] = {
        "embed.word": "embed_in.weight",
        "norm": "final_layer_norm",
        "head": "embed_out",
    }
    hf_block: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys("qkv", "attention.query_key_value"),
        "o": "attention.dense",
        "fc1": "mlp.dense_h_to_4h",
        "fc2": "mlp.dense_4h_to_h",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
    }

    reference = Reference(
        architectures=("GPTNeoXForCausalLM", "GPTNeoXModel"),
        fields=dict(
            vocab_size=50432,
            hidden_size=6144,
            num_hidden_layers=44,
            num_attention_heads=64,
            intermediate_size=24576,
            hidden_act="gelu",
            attention_dropout=0.0,
            hidden_dropout=0.0,
            classifier_dropout=0.1,
            max_position_embeddings=2048,
            initializer_range=0.02,
            layer_norm_eps=1e-5,
            use_cache=True,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=None,
            tie_word_embeddings=False,
            use_parallel_residual=True,
            rope_parameters=None,
            attention_bias=True,
            is_decoder=False,
        ),
        guarded=guarded(),
        harmless={
            **HARMLESS_KIN,
            "rope_theta": "rotary_emb_base counts, or rope_parameters",
            "partial_rotary_factor": "rotary_pct counts, or rope_parameters",
        },
    )

    @classmethod
    def recipe_of(cls, config: Any) -> Recipe:
        return replace(cls.recipe, parallel=config.parallel)

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> GPTNeoXConfig:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        fields = kin_fields(
            hf,
            tensors,
            _heads(hf),
            eps="layer_norm_eps",
            word="embed_in.weight",
            head="embed_out.weight",
            part=0.25,
            rope_names=_ROPE_NAMES,
        )
        biased = ("q", "k", "v", "o") * hf.flag("attention_bias") + ("fc1", "fc2")
        return GPTNeoXConfig(**fields, biased=biased, parallel=hf.flag("use_parallel_residual"))

    @classmethod
    def hf_weights(cls, config: Any) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor, in which each head has its query, its key and its value."""
        mapped = map_names(cls.weight_shapes(config), dict(cls.hf_names), dict(cls.hf_block), "layers.{}")
        h, d = config.n_heads, config.d_head
        for name, source in mapped.items():
            layer = name.split(".")[-2]
            if name.startswith("blocks.") and layer in ("q", "k", "v"):
                first = "qkv".index(layer) * d
                rows = tuple(3 * d * head + first + a for head in range(h) for a in range(d))
                mapped[name] = source._replace(rows=rows, n_rows=3 * h * d)
        return halves(config, mapped)
