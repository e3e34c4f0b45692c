"""Mistral (arXiv 2310.06825): Llama with a head width of its own and a window in every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.models.decoders.kin import HARMLESS_KIN, Kin, KinConfig, guarded, heads_of, kin_fields, own_head_dim
from astra_mpi.models.windows import sliding_window


@dataclass(frozen=True)
class MistralConfig(KinConfig):
    family: ClassVar[str] = "mistral"


class Mistral(Kin):
    Config = MistralConfig

    reference = Reference(
        architectures=("MistralForCausalLM", "MistralModel"),
        fields=dict(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=None,
            hidden_act="silu",
            max_position_embeddings=131072,
            initializer_range=0.02,
            rms_norm_eps=1e-6,
            use_cache=True,
            pad_token_id=None,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
            rope_parameters=None,
            sliding_window=4096,
            attention_dropout=0.0,
        ),
        guarded=guarded("sliding_window"),
        harmless={**HARMLESS_KIN, "layer_types": "of the class Ministral; here all blocks have the window"},
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> MistralConfig:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        fields, size = kin_fields(hf, tensors, heads_of(hf, own_head_dim(hf))), sliding_window(hf)
        return MistralConfig(**fields, windows=() if size is None else (size,) * fields["n_layers"])
