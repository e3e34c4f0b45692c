"""How the architectures of GGUF are Hugging Face's: names of tensors, keys of config.json, what was rearranged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from astra_mpi.convert.gguf.metadata import Metadata
from astra_mpi.convert.gguf.tensors import Arrange, turned_halves

Config = dict[str, Any]
#: metadata, names of the tensors -> keys of config.json beside those of `keys`
More = Callable[[Metadata, Config], Config]
#: config.json -> arrangement of a tensor's values
Arranger = Callable[[Config], Arrange]

_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_GROUPED = _SIZES | {"attention.head_count_kv": "num_key_value_heads"}
_RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_LLAMA_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"} | {"attn_output": "self_attn.o_proj"}
_GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_LLAMA_BLOCK = _ATTENTION | _GATED | _NORMS


@dataclass(frozen=True)
class Architecture:
    """One of `general.architecture`."""

    model_type: str  # Hugging Face's
    class_name: str  # of transformers: `architectures` of config.json
    keys: Mapping[str, str]  # metadata key behind the architecture's name -> key of config.json
    outer: Mapping[str, str]  # tensor outside of blocks, without .weight or .bias -> its Hugging Face name
    block: Mapping[str, str]  # the same, behind blk.{i}. and `prefix`
    prefix: str = "model.layers.{}."
    fixed: Mapping[str, Any] = field(default_factory=dict)  # what no key says
    more: More | None = None
    arrange: Mapping[str, Arranger] = field(default_factory=dict)  # of tensors of blocks
    harmless: tuple[str, ...] = ()  # keys that change no answer
    tied: bool = True  # config.json says tie_word_embeddings where there is no `output`
    rotary: bool = True
    some_blocks: tuple[str, ...] = ()  # tensors that only some blocks have


def _turned(heads: str) -> Arranger:
    return lambda config: turned_halves(config[heads])


#: what llama.cpp's converter does to Llama and its like
_TURNED = {"attn_q": _turned("num_attention_heads"), "attn_k": _turned("num_key_value_heads")}


def _llama_biases(metadata: Metadata, config: Config) -> Config:
    return {"attention_bias": metadata.has("blk.0.attn_q.bias"), "mlp_bias": metadata.has("blk.0.ffn_up.bias")}


LLAMA = Architecture(
    "llama", "LlamaForCausalLM", _GROUPED | _RMS, _LLAMA_OUTER, _LLAMA_BLOCK, more=_llama_biases, arrange=_TURNED,
    fixed={"hidden_act": "silu"},
)  # fmt: skip

ARCHITECTURES: dict[str, Architecture] = {"llama": LLAMA}
