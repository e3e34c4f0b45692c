"""Rotary positions as a GGUF file states them -> keys of config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.convert.gguf.metadata import Metadata
from astra_mpi.convert.gguf.tensors import GGUFTensor
from astra_mpi.errors import InputError

#: tensors that say how much slower each pair of numbers turns: of Llama 3, and of Phi-3
FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_SHARE = 1e-4  # factors are float32, of arithmetic that is not quite ours
_YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "attn_factor": "attention_factor"}


def rope_config(metadata: Metadata, config: dict[str, Any], tensors: Mapping[str, GGUFTensor]) -> dict[str, Any]:
    """rope_parameters, and head_dim where it is not the usual. InputError on scaling that is not known."""
    width = config["hidden_size"] // config["num_attention_heads"]
    head = metadata.integer("@.attention.key_length", width, least=1)
    values = metadata.integer("@.attention.value_length", head, least=1)
    require(
        head == values,
        f"{metadata.path}: its heads have keys of {head} numbers and values of {values}, which is not supported; use a"
        " model where they are alike",
    )
    turned = metadata.integer("@.rope.dimension_count", head, least=1)
    theta = metadata.number("@.rope.freq_base", 10000.0)
    scaling = _scaling(metadata, config, tensors, theta, turned)
    parameters = {"rope_type": "default", "rope_theta": theta} | scaling
    if turned != head:
        parameters["partial_rotary_factor"] = turned / head
    found: dict[str, Any] = {"rope_parameters": parameters}
    if head != width:
        found["head_dim"] = head
    if "long_factor" in scaling:  # a field of its own there, whose default would win
        found["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    return found


def _scaling(
    metadata: Metadata, config: dict[str, Any], tensors: Mapping[str, GGUFTensor], theta: float, turned: int
) -> dict[str, Any]:
    kind = metadata.text("@.rope.scaling.type", "none")
    factor = metadata.number("@.rope.scaling.factor", metadata.number("@.rope.scale_linear", 1.0))
    trained = metadata.integer("@.rope.scaling.original_context_length", None, least=1)
    if FREQUENCIES in tensors:
        return _llama3(metadata, tensors[FREQUENCIES], theta, turned)
    if LONG in tensors or SHORT in tensors:
        return _longrope(metadata, tensors, config, trained)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    if kind not in ("linear", "yarn"):
        raise InputError(
            f"{metadata.path}: {metadata.named('@.rope.scaling.type')} = {kind} is not supported; linear and yarn are"
        )
    found: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        given = {name: metadata.number(f"@.rope.scaling.{key}", None) for key, name in _YARN.items()}
        found |= {name: value for name, value in given.items() if value is not None}
        if trained is not None:
            found["original_max_position_embeddings"] = trained
    return found


def _longrope(
    metadata: Metadata, tensors: Mapping[str, GGUFTensor], config: dict[str, Any], trained: int | None
) -> dict[str, Any]:
    for name in (LONG, SHORT):
        require(name in tensors, f"{metadata.path} has no tensor {name}; it is incomplete, download it again")
    require(trained is not None, f"{metadata.path} has {LONG} but no rope.scaling.original_context_length")
    factors = {"long_factor": LONG, "short_factor": SHORT}
    found: dict[str, Any] = {"rope_type": "longrope", "original_max_position_embeddings": trained}
    found |= {key: [float(str(one)) for one in tensors[name].read().ravel()] for key, name in factors.items()}
    stretched = config["max_position_embeddings"] / (trained or 1)
    usual = math.sqrt(1 + math.log(stretched) / math.log(trained or 1)) if stretched > 1 and (trained or 1) > 1 else 1.0
    said = metadata.number("@.rope.scaling.attn_factor", usual)
    return found if math.isclose(said, usual, rel_tol=_SHARE) else found | {"attention_factor": said}


def _llama3(metadata: Metadata, tensor: GGUFTensor, theta: float, turned: int) -> dict[str, Any]:
    """The settings that give these factors, (turned / 2,): 1 for short waves, `factor` for long ones, a ramp between.

    The ramp has two numbers, so that one of the three settings is free: low_freq_factor is 1, as it always is.
    """
    factors = tensor.read().astype(np.float64).ravel()
    wrong = f"{metadata.path}: {FREQUENCIES} is not a scaling of Llama 3 known here; use another model"
    require(len(factors) == turned // 2 and bool((factors >= 1 - _SHARE).all()), wrong)
    factor = float(factors.max())
    if factor <= 1 + _SHARE:
        return {}
    per_position = theta ** (-np.arange(0, turned, 2) / turned) / (2 * np.pi)  # waves per position
    for high, trained in _ramps(factors, factor, per_position):
        kept = np.clip((trained * per_position - 1) / (high - 1), 0, 1)
        if np.allclose(1 / factors, kept + (1 - kept) / factor, rtol=_SHARE):
            return {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high,
                "original_max_position_embeddings": trained,
            }  # fmt: skip
    raise InputError(wrong)


def _ramps(factors: np.ndarray, factor: float, per_position: np.ndarray) -> list[tuple[float, int]]:
    """Guesses of (high_freq_factor, original_max_position_embeddings): the usual, and from two places of the ramp."""
    guesses = [(4.0, 1 << bits) for bits in (13, *range(4, 18))]
    kept = (1 / factors - 1 / factor) / (1 - 1 / factor)
    ramp = np.flatnonzero((kept > _SHARE) & (kept < 1 - _SHARE))
    if len(ramp) >= 2:
        slope, start = np.polyfit(per_position[ramp], kept[ramp], 1)  # kept = (trained * waves - 1) / (high - 1)
        if start < 0 < slope:
            guesses.append((1 - 1 / start, round(-slope / start)))
    return guesses
