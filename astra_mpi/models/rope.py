"""Rotary position embeddings (arXiv 2104.09864): by what angles queries and keys are turned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from astra_mpi.config import require

TYPES = ("default", "linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class Rope:
    """Angle of pair a at position p: p * theta^(-2a / width), slowed down for contexts longer than trained on."""

    theta: float = 10000.0
    type: str = "default"  # "linear": all by `factor`; "llama3", "yarn": low frequencies by it, high ones not at all
    factor: float = 1.0
    low_factor: float = 1.0  # llama3: wavelengths over trained_positions / low_factor are low frequencies,
    high_factor: float = 4.0  # those under trained_positions / high_factor are high ones, a ramp lies between
    trained_positions: int = 8192  # llama3, longrope: positions before the context was lengthened
    width: int = 0  # numbers of a head that turn, the others stand still; 0: all
    scale: float = 1.0  # of what turns
    ramp: tuple[float, ...] = ()  # yarn: pairs up to the first are high frequencies, from the second on low ones
    short: tuple[float, ...] = ()  # longrope: by what each pair is slowed down in sequences up to trained_positions,
    long: tuple[float, ...] = ()  # and in longer ones

    def __post_init__(self) -> None:
        require(self.type in TYPES, f"RoPE scaling '{self.type}' is not supported; use one of {', '.join(TYPES)}")
        positive = self.theta > 0 and self.factor > 0 and self.scale > 0
        require(positive, "RoPE: theta, factor and scale must be positive")
        require(self.high_factor > self.low_factor > 0, "RoPE: high_factor must be above low_factor, both positive")
        good = len(self.ramp) == 2 and self.ramp[0] <= self.ramp[1]
        require(good or self.type != "yarn", f"RoPE: ramp = {self.ramp} must be two numbers, ascending")

    def check(self, d_head: int) -> None:
        """InputError unless heads of this width can be turned so."""
        width = self.width or d_head
        fits = d_head % 2 == 0 and width % 2 == 0 and 0 < width <= d_head
        require(fits, f"config: rotary positions need an even head width, and turn {width} of {d_head} numbers")
        for factors in (self.short, self.long) if self.type == "longrope" else ():
            good = len(factors) == width // 2 and min(factors, default=0) > 0
            require(good, f"RoPE: longrope needs {width // 2} positive factors, not {len(factors)}")

    def frequencies(self, d_head: int, long: bool = False) -> np.ndarray:
        """(d_head / 2,) float64: angle per position; long: in a sequence longer than trained_positions."""
        width = self.width or d_head
        frequencies = np.zeros(d_head // 2)
        frequencies[: width // 2] = self._slowed(self.theta ** (-np.arange(0, width, 2) / width), long)
        return frequencies

    def _slowed(self, frequencies: np.ndarray, long: bool) -> np.ndarray:
        if self.type == "default":
            return frequencies
        if self.type == "linear":
            return frequencies / self.factor
        if self.type == "longrope":
            return frequencies / np.asarray(self.long if long else self.short)
        if self.type == "yarn":
            low, high = self.ramp
            kept = 1 - np.clip((np.arange(len(frequencies)) - low) / max(high - low, 1e-3), 0, 1)
        else:
            waves = self.trained_positions * frequencies / (2 * np.pi)  # in the context trained on
            kept = np.clip((waves - self.low_factor) / (self.high_factor - self.low_factor), 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)

    def turns(self, positions: np.ndarray, d_head: int, long: np.ndarray | None = None) -> np.ndarray:
        """positions (n,) -> (n, d_head) float32: cosines of the angles, then their sines, times `scale`.

        long (n,): tokens of sequences that are longer than trained_positions, of longrope.
        """
        angles = positions[:, None] * self.frequencies(d_head)  # float64: far positions have large angles
        if self.type == "longrope" and long is not None:
            angles[long] = positions[long, None] * self.frequencies(d_head, long=True)
        turned = np.full(d_head // 2, 1.0)
        turned[: (self.width or d_head) // 2] = self.scale
        return np.concatenate([np.cos(angles) * turned, np.sin(angles) * turned], axis=1).astype(np.float32)
