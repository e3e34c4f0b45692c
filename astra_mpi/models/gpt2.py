"""GPT-2 (Radford et al., 2019): pre-LayerNorm blocks, learned positions, causal attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

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


class GPT2Config(DecoderConfig):
    """As `DecoderConfig`."""

    family: ClassVar[str] = "gpt2"


class GPT2(Decoder):
    """Embedding and head; the blocks are shared (`Block`)."""

    Config = GPT2Config
    recipe = Recipe(norm_first=True)
    default_site = "normed"

    def embed(self, batch: Batch, layout: Layout) -> np.ndarray:
        """-> rows (n, D) of this rank: word and position embedding."""
        assert batch.positions is not None
        token = self.tokens_here(batch, layout)
        words = take(self.w["embed.word"], batch.values[token])
        return words + take(self.w["embed.position"], batch.positions[token])

    @staticmethod
    def weight_shapes(config: GPT2Config) -> Shapes:
        d = config.d_model
        shapes = {"embed.position": (config.max_positions, d), "norm.weight": (d,), "norm.bias": (d,)}
        return embedding_shapes(config) | shapes | block_shapes(config)

    reference = Reference(
        architectures=("GPT2LMHeadModel", "GPT2Model"),
        fields=dict(
            vocab_size=50257,
            n_positions=1024,
            n_embd=768,
            n_layer=12,
            n_head=12,
            n_inner=None,
            activation_function="gelu_new",
            resid_pdrop=0.1,
            embd_pdrop=0.1,
            attn_pdrop=0.1,
            layer_norm_epsilon=1e-5,
            initializer_range=0.02,
            summary_type="cls_index",
            summary_use_proj=True,
            summary_activation=None,
            summary_proj_to_labels=True,
            summary_first_dropout=0.1,
            scale_attn_weights=True,
            use_cache=True,
            bos_token_id=50256,
            eos_token_id=50256,
            pad_token_id=None,
            scale_attn_by_inverse_layer_idx=False,
            reorder_and_upcast_attn=False,
            add_cross_attention=False,
            tie_word_embeddings=True,
        ),
        guarded=GUARDED_DECODER,
        harmless={
            "reorder_and_upcast_attn": "changes the order of operations only",
            **dict.fromkeys(("rope_parameters", "rope_scaling", "rope_theta"), "for models with rotary positions"),
            "head_dim": "for the caches of other models",
            "n_ctx": "the older name of `n_positions`, which is used instead",
            "id2label": "belongs to a head that is not converted",
            "num_labels": "belongs to a head that is not converted",
        },
        aliases={
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> GPT2Config:
        """Hugging Face GPT-2 config.json -> config. InputError on what is not supported."""
        d_model, n_heads = hf.heads("n_embd", "n_head")
        return GPT2Config(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_heads,
            n_layers=causal_layers(hf, "n_layer"),
            d_ff=4 * d_model if hf.get("n_inner") is None else hf.integer("n_inner"),
            activation=hf.activation("activation_function"),
            norm_eps=hf.number("layer_norm_epsilon"),
            vocab_size=hf.integer("vocab_size"),
            max_positions=hf.integer("n_positions"),
            tied=tied_head(hf, tensors, "wte.weight"),
        )

    hf_prefix = "transformer."
    hf_anchor = "ln_f.weight"
    hf_blocks = ("h.",)
    hf_constants = (".attn.bias", ".attn.masked_bias", "lm_head.weight")

    @staticmethod
    def hf_weights(config: GPT2Config) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor. Its layers in blocks are (in, out), with q, k and v side by side."""
        names = {"embed.word": "wte.weight", "embed.position": "wpe.weight", "norm": "ln_f", "head": "lm_head"}
        joint = dict.fromkeys("qkv", "attn.c_attn")
        block = {"o": "attn.c_proj", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj", "norm1": "ln_1", "norm2": "ln_2"}
        mapped = map_names(GPT2.weight_shapes(config), names, joint | block, "h.{}")
        for name, source in mapped.items():
            layer = name.split(".")[-2]
            if layer in joint:
                mapped[name] = Source(source.name, "qkv".index(layer), 3, in_out=True)
            elif name.startswith("blocks."):
                mapped[name] = source._replace(in_out=True)
        return mapped

    PRESETS: ClassVar[dict[str, Callable[[int | None], GPT2Config]]] = {}


def _preset(n_tokens: int | None, *, d_model: int, n_heads: int, n_layers: int) -> GPT2Config:
    positions = 1024 if n_tokens is None else n_tokens
    require(positions >= 1, f"--tokens {positions}: at least one")
    return GPT2Config(d_model, n_heads, n_heads, n_layers, 4 * d_model, "gelu_tanh", 1e-5, 50257, max(1024, positions))


GPT2.PRESETS.update(
    {
        "gpt2-tiny": partial(_preset, d_model=128, n_heads=2, n_layers=2),
        "gpt2": partial(_preset, d_model=768, n_heads=12, n_layers=12),
        "gpt2-medium": partial(_preset, d_model=1024, n_heads=16, n_layers=24),
    }
)
