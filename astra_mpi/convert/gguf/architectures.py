"""How the architectures of GGUF are Hugging Face's: names of tensors, keys of config.json, what was rearranged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from astra_mpi.convert.gguf import settings
from astra_mpi.convert.gguf.arrange import Arranger, plus_one_taken, separate_to_heads, transposed, turned_halves
from astra_mpi.convert.gguf.metadata import Metadata

Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One of `general.architecture`."""

    model_type: str  # Hugging Face's
    class_name: str  # of transformers: `architectures` of config.json
    keys: dict[str, str]  # metadata key behind the architecture's name -> key of config.json
    outer: dict[str, str]  # tensor outside of blocks, without .weight or .bias -> its Hugging Face name
    block: dict[str, str]  # the same, behind blk.{i}. and `prefix`
    prefix: str = "model.layers.{}."
    fixed: dict[str, Any] = field(default_factory=dict)  # what no key says
    more: Callable[[Metadata, Config], Config] | None = None  # what follows from several keys, or from tensors
    arrange: dict[str, Arranger] = field(default_factory=dict)  # of tensors, without blk.{i}.
    harmless: tuple[str, ...] = ()  # keys that change no answer
    some_blocks: tuple[str, ...] = ()  # tensors that only some blocks have
    has_tied: bool = True  # config.json says tie_word_embeddings where there is no `output`
    is_rotary: bool = True


_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_GROUPED = _SIZES | {"attention.head_count_kv": "num_key_value_heads"}
_RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"} | {"attn_output": "self_attn.o_proj"}
_GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_BEHIND = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_TURNED = {"attn_q": turned_halves("num_attention_heads"), "attn_k": turned_halves("num_key_value_heads")}
_SILU = {"hidden_act": "silu"}

_LLAMA = Architecture(
    "llama", "LlamaForCausalLM", _GROUPED | _RMS, _OUTER, _ATTENTION | _GATED | _NORMS,
    fixed=_SILU, more=settings.biases, arrange=_TURNED,
)  # fmt: skip
_QWEN2 = replace(
    _LLAMA, model_type="qwen2", class_name="Qwen2ForCausalLM", fixed=_SILU | {"use_sliding_window": False}, more=None,
    arrange={},
)  # fmt: skip
_GEMMA = replace(
    _LLAMA, model_type="gemma", class_name="GemmaForCausalLM", more=settings.head_width,
    fixed={"hidden_act": "gelu_pytorch_tanh", "attention_bias": False},
    arrange=dict.fromkeys(("attn_norm", "ffn_norm", "output_norm"), plus_one_taken),
)  # fmt: skip
_GEMMA2_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"} | _BEHIND
_GEMMA2 = replace(
    _GEMMA, model_type="gemma2", class_name="Gemma2ForCausalLM", more=settings.gemma2,
    block=_ATTENTION | _GATED | _GEMMA2_NORMS,
    fixed={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
    arrange=dict.fromkeys((*_GEMMA2_NORMS, "output_norm"), plus_one_taken),
)  # fmt: skip

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "smollm3": replace(
        _LLAMA, model_type="smollm3", class_name="SmolLM3ForCausalLM",
        fixed=_SILU | {"no_rope_layer_interval": 4, "use_sliding_window": False},
    ),
    "granite": replace(_LLAMA, model_type="granite", class_name="GraniteForCausalLM", more=settings.granite),
    "qwen2": _QWEN2,
    "qwen3": replace(
        _QWEN2, model_type="qwen3", class_name="Qwen3ForCausalLM", block=_QWEN2.block | _HEAD_NORMS,
        fixed=_QWEN2.fixed | {"attention_bias": False}, more=settings.head_width,
    ),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3": replace(
        _GEMMA2, model_type="gemma3_text", class_name="Gemma3ForCausalLM", more=settings.gemma3,
        block=_GEMMA2.block | _HEAD_NORMS,
        arrange=_GEMMA2.arrange | dict.fromkeys(_HEAD_NORMS, plus_one_taken),
        is_rotary=False,  # two of them: `settings.gemma3` reads both
    ),
    "phi3": replace(
        _QWEN2, model_type="phi3", class_name="Phi3ForCausalLM", more=settings.phi3,
        block=_NORMS | {
            "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj",
        },
        fixed=_SILU,
    ),
    "olmo2": replace(
        _QWEN2, model_type="olmo2", class_name="Olmo2ForCausalLM", block=_ATTENTION | _GATED | _BEHIND | _HEAD_NORMS,
        fixed=_SILU | {"attention_bias": False},
    ),
    "starcoder2": Architecture(
        "starcoder2", "Starcoder2ForCausalLM", _GROUPED | {"attention.layer_norm_epsilon": "norm_epsilon"}, _OUTER,
        _ATTENTION | _NORMS | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        fixed={"hidden_act": "gelu_pytorch_tanh", "use_bias": True, "sliding_window": None},
    ),
    "stablelm": Architecture(
        "stablelm", "StableLmForCausalLM", _GROUPED | {"attention.layer_norm_epsilon": "layer_norm_eps"}, _OUTER,
        _ATTENTION | _GATED | _NORMS, fixed=_SILU, more=settings.stablelm,
    ),
    "gptneox": Architecture(
        "gpt_neox", "GPTNeoXForCausalLM", _SIZES | {"attention.layer_norm_epsilon": "layer_norm_eps"},
        {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "embed_out"},
        _NORMS | {
            "attn_qkv": "attention.query_key_value", "attn_output": "attention.dense",
            "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
        },
        prefix="gpt_neox.layers.{}.", fixed={"hidden_act": "gelu"}, more=settings.gptneox,
        arrange={"attn_qkv": separate_to_heads},
    ),
    "gpt2": Architecture(
        "gpt2", "GPT2LMHeadModel",
        {
            "context_length": "n_positions", "embedding_length": "n_embd", "block_count": "n_layer",
            "feed_forward_length": "n_inner", "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        {
            "token_embd": "transformer.wte", "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f", "output": "lm_head",
        },
        {
            "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
        },
        prefix="transformer.h.{}.", fixed={"activation_function": "gelu_new"}, is_rotary=False,
        arrange=dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), transposed),
        harmless=("attention.head_count_kv", "rope.dimension_count"),
    ),
    "bert": Architecture(
        "bert", "BertModel", _SIZES | {"attention.layer_norm_epsilon": "layer_norm_eps"},
        {
            "token_embd": "embeddings.word_embeddings", "position_embd": "embeddings.position_embeddings",
            "token_types": "embeddings.token_type_embeddings", "token_embd_norm": "embeddings.LayerNorm",
        },
        {
            "attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value",
            "attn_output": "attention.output.dense", "attn_output_norm": "attention.output.LayerNorm",
            "ffn_up": "intermediate.dense", "ffn_down": "output.dense", "layer_output_norm": "output.LayerNorm",
        },
        prefix="encoder.layer.{}.", fixed={"hidden_act": "gelu"}, more=settings.bert, has_tied=False, is_rotary=False,
    ),
}  # fmt: skip
