"""StableLM (Stability AI, 2023 and 2024): Llama with LayerNorm and a quarter of each head turned; some with attention
and MLP side by side behind one norm, and with a LayerNorm of their own for each head's queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import optional
from astra_mpi.models.decoders.kin import (
    HARMLESS_KIN,
    LLAMA_BLOCK,
    Kin,
    KinConfig,
    guarded,
    heads_of,
    kin_fields,
)
from astra_mpi.models.hf import Source
from astra_mpi.models.recipe import Recipe


@dataclass(frozen=True)
class StableLMConfig(KinConfig):
    """As the others, and whether heads are normalised."""

    head_norms: bool = optional(False)

    family: ClassVar[str] = "stablelm"


class StableLM(Kin):
    Config = StableLMConfig
    recipe = Recipe(norm_first=True, gated=True, rotary=True)
    hf_block: ClassVar[Mapping[str, str]] = {
        **LLAMA_BLOCK,
        "q_norm": "self_attn.q_layernorm.norms",
        "k_norm": "self_attn.k_layernorm.norms",
    }

    reference = Reference(
        architectures=("StableLmForCausalLM", "StableLmModel"),
        fields=dict(
            vocab_size=50304,
            intermediate_size=6912,
            hidden_size=2560,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            hidden_act="silu",
            max_position_embeddings=4096,
            initializer_range=0.02,
            layer_norm_eps=1e-5,
            use_cache=True,
            tie_word_embeddings=False,
            rope_parameters=None,
            use_qkv_bias=False,
            qk_layernorm=False,
            use_parallel_residual=False,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
        ),
        guarded=guarded(),
        harmless=HARMLESS_KIN,
    )

    @classmethod
    def recipe_of(cls, config: Any) -> Recipe:
        parallel, norms = config.parallel, "heads" if config.head_norms else ""
        return replace(cls.recipe, parallel=parallel, shared_norm=parallel, qk_norm=norms)

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> StableLMConfig:
        """Hugging Face config.json -> config. InputError on what is not supported."""
        heads = heads_of(hf)
        hf.only("head_dim", (None, heads["d_head"]), " (hidden_size / num_attention_heads)")
        fields = kin_fields(hf, tensors, heads, eps="layer_norm_eps", part=0.25)
        return StableLMConfig(
            **fields,
            biased=("q", "k", "v") * hf.flag("use_qkv_bias"),
            parallel=hf.flag("use_parallel_residual"),
            head_norms=hf.flag("qk_layernorm"),
        )

    @classmethod
    def hf_weights(cls, config: Any) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor; norms of heads are a tensor for each."""
        mapped = cls.hf_mapped(config)
        for name, source in mapped.items():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                n = config.n_heads if "q_norm" in name else config.n_kv_heads
                each = tuple(source.name.replace(".weight", f".{h}.weight") for h in range(n))
                mapped[name] = source._replace(name=each[0], more=each[1:])
        return mapped
