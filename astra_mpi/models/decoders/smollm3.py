"""SmolLM3 (Hugging Face, 2025): Llama with some blocks, every fourth as a rule, that turn nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from astra_mpi.checkpoint.config import HFConfig, shown
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require
from astra_mpi.models.decoders.kin import HARMLESS_KIN, Kin, KinConfig, guarded, heads_of, kin_fields, own_head_dim
from astra_mpi.models.windows import sliding_window, windows


@dataclass(frozen=True)
class SmolLM3Config(KinConfig):
    family: ClassVar[str] = "smollm3"


class SmolLM3(Kin):
    Config = SmolLM3Config

    reference = Reference(
        architectures=("SmolLM3ForCausalLM", "SmolLM3Model"),
        fields=dict(
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=4,
            hidden_act="silu",
            max_position_embeddings=32768,
            initializer_range=0.02,
            rms_norm_eps=1e-6,
            use_cache=True,
            pad_token_id=128004,
            bos_token_id=128000,
            eos_token_id=128001,
            rope_parameters=None,
            use_sliding_window=False,
            sliding_window=None,
            no_rope_layers=None,
            no_rope_layer_interval=4,
            layer_types=None,
            attention_bias=False,
            attention_dropout=0.0,
            mlp_bias=False,
            tie_word_embeddings=True,
        ),
        guarded=guarded("sliding_window", "layer_types"),
        harmless=HARMLESS_KIN,
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> SmolLM3Config:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        fields = kin_fields(hf, tensors, heads_of(hf, own_head_dim(hf)), theta=2000000.0)
        n_layers, turned = fields["n_layers"], hf.get("no_rope_layers")
        if turned is None:
            interval = hf.integer("no_rope_layer_interval")
            turned = [int((i + 1) % interval != 0) for i in range(n_layers)]
        good = isinstance(turned, list) and len(turned) == n_layers and all(type(x) is int for x in turned)
        require(good, f"no_rope_layers = {shown(turned)} must be {n_layers} integers, 0 where a block has no positions")
        size = sliding_window(hf)
        slides = hf.flag("use_sliding_window") and size is not None
        return SmolLM3Config(
            **fields,
            biased=("q", "k", "v", "o") * hf.flag("attention_bias") + ("gate", "fc1", "fc2") * hf.flag("mlp_bias"),
            unturned=tuple(i for i, turns in enumerate(turned) if not turns),
            windows=windows(hf, n_layers, size, [slides and not turns for turns in turned]),
        )
