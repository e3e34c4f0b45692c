"""StarCoder2 (arXiv 2402.19173): LayerNorm and a plain MLP with rotary positions, grouped queries and a window."""

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
from astra_mpi.models.windows import sliding_window


@dataclass(frozen=True)
class Starcoder2Config(KinConfig):
    family: ClassVar[str] = "starcoder2"


class Starcoder2(Kin):
    Config = Starcoder2Config
    recipe = Recipe(norm_first=True, rotary=True)
    hf_block: ClassVar[Mapping[str, str]] = {**LLAMA_BLOCK, "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}

    reference = Reference(
        architectures=("Starcoder2ForCausalLM", "Starcoder2Model"),
        fields=dict(
            vocab_size=49152,
            hidden_size=3072,
            intermediate_size=12288,
            num_hidden_layers=30,
            num_attention_heads=24,
            num_key_value_heads=2,
            hidden_act="gelu_pytorch_tanh",
            max_position_embeddings=4096,
            initializer_range=0.018042,
            norm_epsilon=1e-5,
            use_cache=True,
            bos_token_id=50256,
            eos_token_id=50256,
            pad_token_id=None,
            rope_parameters=None,
            sliding_window=None,
            attention_dropout=0.0,
            residual_dropout=0.0,
            embedding_dropout=0.0,
            use_bias=True,
            tie_word_embeddings=True,
        ),
        guarded=guarded("sliding_window"),
        harmless=HARMLESS_KIN,
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> Starcoder2Config:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        fields = kin_fields(hf, tensors, heads_of(hf, own_head_dim(hf)), eps="norm_epsilon")
        size, biased = sliding_window(hf), ("q", "k", "v", "o", "fc1", "fc2") * hf.flag("use_bias")
        return Starcoder2Config(**fields, biased=biased, windows=() if size is None else (size,) * fields["n_layers"])
