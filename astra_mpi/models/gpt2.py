"""GPT-2 (Radford et al., 2019): pre-LayerNorm blocks, learned positions, causal attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np

from astra_mpi.config import require
from astra_mpi.models.batch import Batch
from astra_mpi.models.block import Recipe, Shapes, block_shapes
from astra_mpi.models.decoder import Decoder, DecoderConfig, embedding_shapes
from astra_mpi.models.hf import Source, activation, check_architecture, map_names
from astra_mpi.partition import Layout
from astra_mpi.xp import take


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

    @staticmethod
    def from_hf(hf: dict[str, Any]) -> GPT2Config:
        """Hugging Face GPT-2 config.json -> config. KeyError on a missing key."""
        check_architecture(hf, ("GPT2LMHeadModel", "GPT2Model"))
        wanted = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
        for key, value in wanted.items():
            require(hf.get(key, value) is value, f"{key} = {hf.get(key)} is not supported; only {value} is")
        return GPT2Config(
            d_model=hf["n_embd"],
            n_heads=hf["n_head"],
            n_kv_heads=hf["n_head"],
            n_layers=hf["n_layer"],
            d_ff=hf.get("n_inner", 4 * hf["n_embd"]),
            activation=activation(hf["activation_function"]),
            norm_eps=hf["layer_norm_epsilon"],
            vocab_size=hf["vocab_size"],
            max_positions=hf["n_positions"],
            tied=hf.get("tie_word_embeddings", True),
        )

    hf_prefix = "transformer."
    hf_blocks = "h."
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
