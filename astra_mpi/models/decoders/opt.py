"""OPT (arXiv 2205.01068): GPT-2 with ReLU as a rule, and positions that begin at 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import GUARDED_DECODER, Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import optional
from astra_mpi.device.xp import take
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.models.decoder import Decoder, DecoderConfig, causal_layers, embedding_shapes, tied_head
from astra_mpi.models.hf import Source, map_names
from astra_mpi.models.recipe import Recipe, Shapes, block_shapes

FIRST_POSITION = 2
_LINEARS = ("q", "k", "v", "o", "fc1", "fc2")


@dataclass(frozen=True)
class OPTConfig(DecoderConfig):
    """As `DecoderConfig`."""

    biases: bool = optional(True)

    family: ClassVar[str] = "opt"


class OPT(Decoder):
    """Embedding and head; the blocks are shared."""

    Config = OPTConfig
    recipe = Recipe(norm_first=True)
    default_site = "normed"
    config: OPTConfig

    def embed(self, batch: Batch, layout: Layout) -> np.ndarray:
        """-> rows (n, D) of this rank: word and position embedding."""
        assert batch.positions is not None
        token = self.tokens_here(batch, layout)
        words = take(self.w["embed.word"], batch.values[token])
        return words + take(self.w["embed.position"], batch.positions[token])

    @staticmethod
    def weight_shapes(config: OPTConfig) -> Shapes:
        d = config.d_model
        shapes = {"embed.position": (config.max_positions, d), "norm.weight": (d,), "norm.bias": (d,)}
        unbiased = () if config.biases else _LINEARS
        return embedding_shapes(config) | shapes | block_shapes(config, OPT.recipe, unbiased)

    reference = Reference(
        architectures=("OPTForCausalLM", "OPTModel"),
        fields=dict(
            vocab_size=50272,
            hidden_size=768,
            num_hidden_layers=12,
            ffn_dim=3072,
            max_position_embeddings=2048,
            do_layer_norm_before=True,
            _remove_final_layer_norm=False,
            word_embed_proj_dim=None,
            dropout=0.1,
            attention_dropout=0.0,
            num_attention_heads=12,
            activation_function="relu",
            layerdrop=0.0,
            init_std=0.02,
            use_cache=True,
            pad_token_id=1,
            bos_token_id=2,
            eos_token_id=2,
            enable_bias=True,
            layer_norm_elementwise_affine=True,
            tie_word_embeddings=True,
        ),
        guarded=GUARDED_DECODER,
        harmless={
            **dict.fromkeys(("dropout", "layerdrop", "init_std"), "acts in training only"),
            **dict.fromkeys(("rope_parameters", "rope_scaling", "rope_theta"), "of models with rotary positions"),
            **dict.fromkeys(("id2label", "num_labels"), "of a head that is not part of what is converted"),
            **dict.fromkeys(("head_dim", "num_heads"), "of other models' caches"),
            "mlp_layer_types": "of mixtures of experts",
        },
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> OPTConfig:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        d_model, n_heads = hf.heads("hidden_size", "num_attention_heads")
        hf.only("word_embed_proj_dim", (None, d_model), " (hidden_size)")
        return OPTConfig(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_heads,
            n_layers=causal_layers(hf, "num_hidden_layers"),
            d_ff=hf.integer("ffn_dim"),
            activation=hf.activation("activation_function"),
            norm_eps=1e-5,
            vocab_size=hf.integer("vocab_size"),
            max_positions=hf.integer("max_position_embeddings"),
            tied=tied_head(hf, tensors, "embed_tokens.weight"),
            biases=hf.flag("enable_bias"),
        )

    hf_prefix = "model.decoder."
    hf_anchor = "embed_positions.weight"
    hf_blocks = ("layers.",)
    hf_constants = ("lm_head.weight",)

    @staticmethod
    def hf_weights(config: OPTConfig) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor; the first rows of the positions belong to none."""
        names = {"embed.word": "embed_tokens.weight", "embed.position": "embed_positions.weight"}
        names |= {"norm": "final_layer_norm", "head": "lm_head"}
        block = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.out_proj"}
        block |= {"fc1": "fc1", "fc2": "fc2", "norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}
        mapped = map_names(OPT.weight_shapes(config), names, block, "layers.{}")
        n_rows = config.max_positions + FIRST_POSITION
        mapped["embed.position"] = mapped["embed.position"]._replace(rows=slice(FIRST_POSITION, None), n_rows=n_rows)
        return mapped

    PRESETS: ClassVar[dict[str, Callable[[int | None], Any]]] = {}
