"""Metadata of a GGUF file -> the config.json that the checkpoint had."""

from __future__ import annotations

from typing import Any

from astra_mpi.config import require
from astra_mpi.convert.gguf.architectures import ARCHITECTURES, Architecture
from astra_mpi.convert.gguf.metadata import Metadata
from astra_mpi.convert.gguf.rope import rope_config
from astra_mpi.convert.gguf.tensors import GGUFTensor
from astra_mpi.errors import InputError
from astra_mpi.models import FAMILIES

#: keys behind an architecture's name that change no answer, or that are read elsewhere
_HARMLESS = ("vocab_size", "tensor_data_layout", "attention.key_length", "attention.value_length")
#: keys with which the forward pass would be another -> the value that changes nothing
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "logit_scale": (1, 0),
    "residual_scale": (1, 0),
    "embedding_scale": (1, 0),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "pooling_type": (0,),
}
#: keys of config.json, whose defaults may be beyond the vocabulary -> those behind tokenizer.ggml.
_MARKS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
EXPERTS = "mixtures of experts are not supported; use a dense model"


def architecture_of(metadata: Metadata) -> Architecture:
    """InputError on one that is not known, or not supported yet."""
    name = metadata.architecture
    experts = metadata.get("@.expert_count", 0)
    if experts or "moe" in name or any("_exps." in tensor for tensor in metadata.tensors):
        raise InputError(f"{metadata.path} is a model of experts (architecture {name}); {EXPERTS}")
    known = [one for one, kind in ARCHITECTURES.items() if kind.model_type in FAMILIES]
    if name not in known:
        raise InputError(
            f"{metadata.path}: the architecture {name} is not supported; use a model of one of {', '.join(known)}"
        )
    return ARCHITECTURES[name]


def hf_config(metadata: Metadata, kind: Architecture, tensors: dict[str, GGUFTensor]) -> dict[str, Any]:
    """config.json. InputError on metadata of wrong types, and on keys that would change answers and are not known."""
    config: dict[str, Any] = {"model_type": kind.model_type, "architectures": [kind.class_name]}
    for key, name in kind.keys.items():
        epsilon = "epsilon" in key
        config[name] = metadata.number(f"@.{key}") if epsilon else metadata.same_in_blocks(f"@.{key}")
    config["vocab_size"] = _vocab_size(metadata, tensors)
    for name, key in _MARKS.items():
        config[name] = metadata.integer(f"tokenizer.ggml.{key}", None)
    config |= kind.fixed
    if kind.has_tied:
        config["tie_word_embeddings"] = "output.weight" not in tensors
    if kind.more is not None:
        config |= kind.more(metadata, config)
    if kind.is_rotary:
        config |= rope_config(metadata, config, tensors)
    _check_rest(metadata, kind)
    return config


def _vocab_size(metadata: Metadata, tensors: dict[str, GGUFTensor]) -> int:
    """Rows of the word embedding. InputError where the metadata say another number."""
    words = tensors.get("token_embd.weight")
    if words is None or len(words.shape) != 2:
        raise InputError(f"{metadata.path} has no matrix token_embd.weight; it is incomplete, download it again")
    rows = words.shape[0]
    said = metadata.integer("@.vocab_size", rows)
    require(
        said == rows,
        f"{metadata.path}: {metadata.named('@.vocab_size')} = {said}, but token_embd.weight has {rows} rows;"
        " download it again",
    )
    return rows


def _check_rest(metadata: Metadata, kind: Architecture) -> None:
    for name in sorted(set(metadata.values) - metadata.read):
        key = name.removeprefix(f"{metadata.architecture}.")
        if key == name or key in _HARMLESS or key in kind.harmless:
            continue
        value = metadata.values[name]
        allowed = _NEUTRAL.get(key, ())
        require(
            any(value == one for one in allowed),
            f"{metadata.path}: {name} = {value} is not known here and may change answers; use a file without it, or"
            " the Hugging Face folder it was made from",
        )
