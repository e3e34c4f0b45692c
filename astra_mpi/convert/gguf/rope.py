"""Rotary positions as a GGUF file states them -> keys of config.json."""

from __future__ import annotations

from typing import Any

from astra_mpi.config import require
from astra_mpi.convert.gguf.metadata import Metadata
from astra_mpi.convert.gguf.tensors import GGUFTensor
from astra_mpi.errors import InputError

FREQUENCIES = "rope_freqs.weight"


def rope_config(metadata: Metadata, config: dict[str, Any], tensors: dict[str, GGUFTensor]) -> dict[str, Any]:
    """rope_theta, head_dim, partial_rotary_factor and rope_scaling. InputError on scaling that is not known."""
    width = config["hidden_size"] // config["num_attention_heads"]
    head = metadata.integer("@.attention.key_length", width, least=1)
    values = metadata.integer("@.attention.value_length", head, least=1)
    require(head == values, f"{metadata.path}: heads whose values are {values} and keys {head} wide are not supported")
    turned = metadata.integer("@.rope.dimension_count", head, least=1)
    found: dict[str, Any] = {"rope_theta": metadata.number("@.rope.freq_base", 10000.0)}
    if head != width:
        found["head_dim"] = head
    if turned != head:
        found["partial_rotary_factor"] = turned / head
    scaling = _scaling(metadata)
    if scaling:
        found["rope_scaling"] = scaling
    if FREQUENCIES in tensors:
        raise InputError(f"{metadata.path}: {FREQUENCIES} is not supported")
    return found


def _scaling(metadata: Metadata) -> dict[str, Any]:
    kind = metadata.text("@.rope.scaling.type", "none")
    factor = metadata.number("@.rope.scaling.factor", metadata.number("@.rope.scale_linear", 1.0))
    if kind == "none" or factor == 1.0:
        return {}
    require(kind == "linear", f"{metadata.path}: {metadata.named('@.rope.scaling.type')} = {kind} is not supported")
    return {"rope_type": "linear", "factor": factor}
