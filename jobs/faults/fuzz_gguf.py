"""A valid GGUF file for jobs/faults/fuzz.py, and others whose keys and tensors are sound, and wrong together."""

from __future__ import annotations

import random
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np

SIZES = dict(embedding_length=64, block_count=2, feed_forward_length=96, context_length=16)
_NAMES = ("output.weight", "blk.9.attn_q.weight", "x", "blk.0.ffn_gate_exps.weight", "rope_freqs.weight")
Arrays = dict[str, tuple[np.ndarray, str]]
KEYS: dict[str, Any] = {f"llama.{key}": value for key, value in SIZES.items()} | {
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "llama.rope.dimension_count": 16,
    "llama.vocab_size": 64,
    "general.alignment": 32,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": ["<s>", "</s>", "ab", *(chr(97 + i % 26) + "x" * (i // 26) for i in range(61))],
    "tokenizer.ggml.token_type": [3, 3, *[1] * 62],
    "tokenizer.ggml.scores": [-float(i) for i in range(64)],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.chat_template": "{{ messages }}",
}
_OTHER: list[Any] = [0, 1, 3, 64, 1 << 31, True, False, "", "x", "bert", "qwen2moe", "none", "linear", -1.0, 0.0, 1e30]
_OTHER += [float("nan"), [], [0], [1, 2], ["a", "a"], [1e9] * 64, ["x"] * 64, "a" * 3000, "é\n", "gpt-2", "llama", "t5"]
_MORE = (
    "llama.expert_count",
    "llama.rope.scaling.type",
    "llama.attention.scale",
    "split.count",
    "general.sampling.temp",
)


def tensors() -> dict[str, tuple[np.ndarray, str]]:
    """name -> (values, type)."""
    draw = np.random.default_rng(5)
    width, narrow, wide = 64, 32, 96
    shapes = {"token_embd": (64, width), "output_norm": (width,), "rope_freqs": (8,)}
    for i in range(2):
        block = {"attn_norm": (width,), "ffn_norm": (width,), "attn_q": (width, width), "attn_k": (narrow, width)}
        block |= {"attn_v": (narrow, width), "attn_output": (width, width), "ffn_gate": (wide, width)}
        block |= {"ffn_up": (wide, width), "ffn_down": (width, wide)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    kinds = ["Q4_0", "Q8_0", "Q5_1", "F16", "BF16", "Q4_1", "Q5_0"]
    found = {}
    for i, (name, shape) in enumerate(shapes.items()):
        array = np.ones(8) if name == "rope_freqs" else draw.normal(0, 0.2, shape)
        found[f"{name}.weight"] = array.astype(np.float32), kinds[i % 7] if len(shape) == 2 else "F32"
    return found


def write_gguf(path: Path, keys: dict[str, Any] = KEYS, arrays: Arrays | None = None) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        if value is None:
            continue
        kind = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}[type(value)]
        writer.add_key_value(key, value, gguf.GGUFValueType[kind])
    for name, (array, kind) in (tensors() if arrays is None else arrays).items():
        type_ = gguf.GGMLQuantizationType[kind]
        data = array if kind == "F32" else gguf.quantize(array, type_)
        writer.add_tensor(name, data, raw_dtype=None if kind == "F32" else type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def damage_gguf(data: bytes, draw: random.Random) -> bytes:
    """Some keys and tensors replaced, left out, renamed or added."""
    keys, arrays = dict(KEYS), tensors()
    for _ in range(draw.choice([1, 1, 2, 3])):
        if draw.random() < 0.6:
            key = draw.choice([*keys, *_MORE, "general.architecture"])
            keys[key] = draw.choice([*_OTHER, None])
        else:
            _damage_tensor(arrays, draw)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        write_gguf(path, keys, arrays)
        return path.read_bytes()


def _damage_tensor(arrays: dict[str, tuple[np.ndarray, str]], draw: random.Random) -> None:
    name = draw.choice(list(arrays))
    array, kind = arrays.pop(name)
    what = draw.randrange(5)
    if what == 0:
        arrays[draw.choice(_NAMES)] = array, kind
    elif what == 1:
        arrays[name] = array.reshape(-1), "F32"
    elif what == 2:
        arrays[name] = np.concatenate([array, array]), kind
    elif what == 3:
        with suppress(ValueError):
            arrays[name] = np.full_like(array, draw.choice([np.nan, np.inf, 1e30, 0])), "F32"
