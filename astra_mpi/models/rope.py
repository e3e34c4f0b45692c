"""Rotary position embeddings (arXiv 2104.09864): by what angles queries and keys are turned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from astra_mpi.config import require

TYPES = ("default", "linear", "llama3")


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
