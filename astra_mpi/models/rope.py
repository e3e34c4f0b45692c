"""Rotary position embeddings (arXiv 2104.09864): by what angles queries and keys are turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from astra_mpi.checkpoint.config import HFConfig, positive, shown
from astra_mpi.config import require
from astra_mpi.errors import InputError, some

TYPES = ("default", "linear", "llama3")
_THETA = {"rope_theta": "theta"}
_LINEAR = _THETA | {"factor": "factor"}
_LLAMA3 = _LINEAR | {"low_freq_factor": "low_factor", "high_freq_factor": "high_factor"}
#: keys of config.json that a type reads -> fields of `Rope`
_READ: dict[str, dict[str, str]] = {
    "default": _THETA,
    "linear": _LINEAR,
    "llama3": _LLAMA3 | {"original_max_position_embeddings": "trained_positions"},
}
#: those that may stand in config.json itself
_OWN = ("rope_theta", "original_max_position_embeddings")


@dataclass(frozen=True)
class Rope:
    """Angle of pair a at position p: p * theta^(-2a / d), slowed down for contexts longer than trained on."""

    theta: float = 10000.0
    type: str = "default"  # "linear": all by `factor`; "llama3": low frequencies by `factor`, high ones not at all
    factor: float = 1.0
    low_factor: float = 1.0  # llama3: wavelengths over trained_positions / low_factor are low frequencies,
    high_factor: float = 4.0  # those under trained_positions / high_factor are high ones, a ramp lies between
    trained_positions: int = 8192  # llama3: positions before the context was lengthened

    def __post_init__(self) -> None:
        require(self.type in TYPES, f"RoPE scaling '{self.type}' is not supported; use one of {', '.join(TYPES)}")
        require(self.theta > 0 and self.factor > 0, "RoPE: theta and factor must be positive")
        require(self.high_factor > self.low_factor > 0, "RoPE: high_factor must be above low_factor, both positive")

    def frequencies(self, d_head: int) -> np.ndarray:
        """(d_head / 2,) float64: angle per position."""
        frequencies = self.theta ** (-np.arange(0, d_head, 2) / d_head)
        if self.type == "default":
            return frequencies
        if self.type == "linear":
            return frequencies / self.factor
        waves = self.trained_positions * frequencies / (2 * np.pi)  # in the context trained on
        kept = np.clip((waves - self.low_factor) / (self.high_factor - self.low_factor), 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)

    def turns(self, positions: np.ndarray, d_head: int) -> np.ndarray:
        """positions (n,) -> (n, d_head) float32: cosines of the angles, then their sines."""
        angles = positions[:, None] * self.frequencies(d_head)  # float64: far positions have large angles
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def rope_settings(hf: HFConfig, max_positions: int) -> Rope:
    """Rotary positions of config.json, merged as transformers 5 does.

    `rope_scaling`, unless it is empty, takes the place of all of `rope_parameters`. The file's own `rope_theta` counts
    where that has none, its own `original_max_position_embeddings` in any case. `type` is an older name of `rope_type`.
    InputError names what is not supported.
    """
    for key in ("rope_parameters", "rope_scaling"):
        require(isinstance(hf.get(key) or {}, dict), f"{key} = {shown(hf.get(key))} must be an object")
    key = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    found = hf.get(key) or {}
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in TYPES:
        raise InputError(f"{key}: rope_type {shown(kind)} is not supported; use one of {', '.join(TYPES)}")
    own = {name: value for name, value in ((name, hf.get(name)) for name in _OWN) if name in hf.values}
    merged = {"rope_theta": 10000.0, "original_max_position_embeddings": max_positions} | own | found
    if "original_max_position_embeddings" in own:
        merged["original_max_position_embeddings"] = own["original_max_position_embeddings"]
    hf.only("partial_rotary_factor", (None, 1))
    _check_unused(
        hf, key, {name: value for name, value in found.items() if name not in ("type", "rope_type", *_READ[kind])}
    )
    missing = [name for name in _READ[kind] if name not in merged]
    require(not missing, f"{key}: rope_type {kind} needs {', '.join(missing)}")
    numbers: dict[str, Any] = {field: positive(name, merged[name]) for name, field in _READ[kind].items()}
    if kind == "llama3":
        above = numbers["high_factor"] > numbers["low_factor"]
        require(above, f"{key}: high_freq_factor must be above low_freq_factor")
        numbers["trained_positions"] = int(numbers["trained_positions"])
    return Rope(type=kind, **numbers)


def _check_unused(hf: HFConfig, key: str, unused: dict[str, Any]) -> None:
    """Keys of the rotary settings that their type does not read: noted, if they could not matter."""
    for name, value in unused.items():
        part = name == "partial_rotary_factor" and value not in (None, 1)
        if part or isinstance(value, dict):
            raise InputError(f"{key}: {shown(name)} = {shown(value)} is not supported")
    if unused:
        hf.notes.append(
            f"{key} has keys that its rope_type does not read, left aside: {some(list(map(shown, unused)))}"
        )
