"""GGUF files of small models of `transformers`, as llama.cpp's convert_hf_to_gguf.py writes them.

Names come from the `gguf` package's own table; what the converter does to keys and tensors is restated here.
"""

import re

import gguf
import numpy as np

#: architecture of GGUF -> class of transformers, and its configuration beside `SIZES`
MODELS = {
    "llama": ("LlamaForCausalLM", dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=False)),
    "smollm3": ("SmolLM3ForCausalLM", dict(num_hidden_layers=4, pad_token_id=None)),
    "granite": (
        "GraniteForCausalLM",
        dict(attention_multiplier=0.3, embedding_multiplier=2.0, residual_multiplier=0.7, logits_scaling=3.0),
    ),
    "qwen2": ("Qwen2ForCausalLM", dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3ForCausalLM", dict(head_dim=16, tie_word_embeddings=False)),
    "gemma": ("GemmaForCausalLM", dict(head_dim=16, pad_token_id=None)),
    "gemma2": (
        "Gemma2ForCausalLM",
        dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=5, attn_logit_softcapping=7.0, pad_token_id=None),
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=5, num_hidden_layers=7, pad_token_id=None),
    ),
    "phi3": ("Phi3ForCausalLM", dict(pad_token_id=None, sliding_window=7, tie_word_embeddings=False)),
    "olmo2": ("Olmo2ForCausalLM", dict(tie_word_embeddings=False, pad_token_id=None)),
    "starcoder2": ("Starcoder2ForCausalLM", dict(sliding_window=None)),
    "stablelm": (
        "StableLmForCausalLM",
        dict(use_qkv_bias=True, partial_rotary_factor=0.5, tie_word_embeddings=False, pad_token_id=None),
    ),
    "gptneox": ("GPTNeoXForCausalLM", dict(rotary_pct=0.5, use_parallel_residual=True, tie_word_embeddings=False)),
    "gpt2": ("GPT2LMHeadModel", dict(n_embd=32, n_head=4, n_layer=2, n_inner=64, n_positions=40)),
    "bert": ("BertModel", dict(type_vocab_size=2)),
}
SIZES = dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=64, vocab_size=96)
SIZES |= dict(max_position_embeddings=40)
_GROUPED = dict(num_key_value_heads=2)
_NO_GROUPS = ("gptneox", "gpt2", "bert")
_PERMUTED = ("llama", "smollm3", "granite")
_PLUS_ONE = ("gemma", "gemma2", "gemma3")


def random_model(arch, seed=0, **more):
    """A model of transformers with every parameter moved off its initial value."""
    import torch
    import transformers

    kind, config = MODELS[arch]
    sizes = dict(vocab_size=SIZES["vocab_size"]) if arch == "gpt2" else SIZES
    grouped = {} if arch in _NO_GROUPS else _GROUPED
    torch.manual_seed(seed)
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**{**sizes, **grouped, **config, **more})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def write_model(path, model, arch, kind="F32", vocabulary=None, change=None, tensors=None, **keys):
    """Write the model. kind: type of its matrices, or name -> type.
    vocabulary(writer) adds a tokenizer. change: whole metadata keys to replace, None leaves one out. tensors: further
    ones, or None for one to leave out. keys: behind the architecture's name.
    """
    writer = gguf.GGUFWriter(path, arch)
    asked = {f"{arch}.{key}": value for key, value in (metadata_of(model, arch) | keys).items()} | (change or {})
    for key, value in asked.items():
        _add(writer, key, value)
    if vocabulary is not None:
        vocabulary(writer)
    for name, array in (gguf_tensors(model, arch) | (tensors or {})).items():
        if array is not None:
            _add_tensor(writer, name, np.asarray(array, np.float32), kind)
    _finish(writer)


def split(path, folder, name, n_parts):
    """The parts of a file as llama.cpp's gguf-split writes them; their paths."""
    reader = gguf.GGUFReader(path)
    paths = [folder / f"{name}-{i + 1:05}-of-{n_parts:05}.gguf" for i in range(n_parts)]
    for i, part in enumerate(paths):
        writer = gguf.GGUFWriter(part, "llama")
        fields = reader.fields if i == 0 else {}
        for key, field in fields.items():
            if not key.startswith("GGUF.") and key != "general.architecture":
                _add(writer, key, field.contents())
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", n_parts)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[i::n_parts]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        _finish(writer)
    return paths


def frequency_factors(model):
    """What llama.cpp stores for the scaling of Llama 3, from its convert_hf_to_gguf.py."""
    rope = model.config.rope_parameters
    width = model.config.hidden_size // model.config.num_attention_heads
    low, high = (rope["original_max_position_embeddings"] / rope[f"{end}_freq_factor"] for end in ("low", "high"))
    factors = []
    for frequency in 1.0 / rope["rope_theta"] ** (np.arange(0, width, 2) / width):
        wave = 2 * np.pi / frequency
        smooth = (rope["original_max_position_embeddings"] / wave - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"]
        )
        ramp = 1 / ((1 - smooth) / rope["factor"] + smooth)
        factors.append(1.0 if wave < high else rope["factor"] if wave > low else ramp)
    return np.array(factors, np.float32)


def _finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer, key, value):
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_array(key, value)


def _add_tensor(writer, name, array, kind):
    matrix = array.ndim == 2 and "norm" not in name
    kind = gguf.GGMLQuantizationType[(kind(name) if callable(kind) else kind) if matrix else "F32"]
    if kind.name == "F32":
        writer.add_tensor(name, array)
    else:
        writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)


def metadata_of(model, arch):
    """Keys behind the architecture's name."""
    c = model.config
    heads = c.num_attention_heads
    keys = {
        "context_length": c.max_position_embeddings, "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers, "attention.head_count": heads,
        "feed_forward_length": c.n_inner if arch == "gpt2" else c.intermediate_size,
    }  # fmt: skip
    if arch not in _NO_GROUPS:
        keys["attention.head_count_kv"] = c.num_key_value_heads
    for name in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        if getattr(c, name, None) is not None:
            keys[f"attention.layer_norm_{'rms_' if 'rms' in name else ''}epsilon"] = getattr(c, name)
    head = getattr(c, "head_dim", None) or c.hidden_size // heads
    rope = getattr(c, "rope_parameters", None)
    if rope and arch != "gemma3":
        keys["rope.freq_base"] = float(rope["rope_theta"])
        keys["rope.dimension_count"] = int(head * (rope.get("partial_rotary_factor") or 1))
    keys |= {"attention.key_length": head, "attention.value_length": head} if "head_dim" in MODELS[arch][1] else {}
    return keys | _more_keys(c, arch)


def _more_keys(c, arch):
    if arch == "granite":
        return {
            "attention.scale": c.attention_multiplier, "embedding_scale": c.embedding_multiplier,
            "residual_scale": c.residual_multiplier, "logit_scale": c.logits_scaling,
        }  # fmt: skip
    if arch in ("gemma2", "gemma3"):
        keys = {"attention.sliding_window": c.sliding_window}
        if arch == "gemma2":
            keys["attn_logit_softcapping"] = c.attn_logit_softcapping
            keys["final_logit_softcapping"] = c.final_logit_softcapping
        else:
            keys["rope.freq_base"] = float(c.rope_parameters["full_attention"]["rope_theta"])
        return keys
    if arch == "phi3":
        return {"attention.sliding_window": c.sliding_window}
    if arch in ("stablelm", "gptneox"):
        return {"use_parallel_residual": c.use_parallel_residual}
    return {"attention.causal": False} if arch == "bert" else {}


def gguf_tensors(model, arch):
    """Arrays by their GGUF name."""
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    table = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    tied = getattr(model.config, "tie_word_embeddings", False)
    found = {}
    for name, tensor in model.state_dict().items():
        layer, _, part = name.rpartition(".")
        if name.startswith("pooler") or (tied and layer in ("lm_head", "embed_out")):
            continue
        if name.endswith((".attn.bias", ".masked_bias", "rotary_emb.inv_freq", "position_ids")):
            continue
        target = table.get_name(layer)
        assert target is not None, f"{name} has no name in GGUF"
        found[f"{target}.{part}"] = _as_stored(arch, model.config, f"{target}.{part}", tensor.float().numpy())
    return found


def _as_stored(arch, config, name, array):
    heads = config.num_attention_heads
    if arch in _PERMUTED and re.search(r"attn_[qk]\.", name):
        n = heads if "attn_q." in name else config.num_key_value_heads
        pairs = array.reshape(n, 2, array.shape[0] // n // 2, *array.shape[1:])
        array = pairs.swapaxes(1, 2).reshape(array.shape)
    if arch in _PLUS_ONE and name.endswith("norm.weight"):
        array = array + 1
    if arch == "gpt2" and re.search(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight", name):
        array = array.T
    if arch == "gptneox" and "attn_qkv" in name:
        parts = array.reshape(heads, 3, -1, *array.shape[1:])
        array = np.concatenate([parts[:, i].reshape(-1, *array.shape[1:]) for i in range(3)])
    return np.ascontiguousarray(array)
