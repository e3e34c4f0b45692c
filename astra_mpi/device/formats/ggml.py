"""How GGML rounds a block of 32 weights: the rules of its reference, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Numbers(NamedTuple):
    """Blocks (.., 32): weight = factor * (number - what the kind adds) + least."""

    factor: np.ndarray  # (..,) float16
    least: np.ndarray | None  # (..,) float16, or None: 0
    numbers: np.ndarray  # (.., 32) uint8


def q8_0(blocks: np.ndarray) -> Numbers:
    """Magnitudes up to 127 steps, halves away from zero."""
    step = np.abs(blocks).max(axis=-1) / np.float32(127)
    scaled = blocks * _inverse(step)[..., None]
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    whole += np.floor(2 * (magnitude - whole))
    return Numbers(step.astype(np.float16), None, (np.copysign(whole, scaled) + 128).astype(np.uint8))


def q4_0(blocks: np.ndarray) -> Numbers:
    """The number of the largest magnitude is 8 steps below zero, whatever its sign."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    step = largest / np.float32(-8)
    numbers = (blocks * _inverse(step)[..., None] + np.float32(8.5)).astype(np.uint8)
    return Numbers(step.astype(np.float16), None, np.minimum(numbers, 15))


def q4_1(blocks: np.ndarray) -> Numbers:
    """15 steps from the least to the largest number."""
    least = blocks.min(axis=-1)
    step = (blocks.max(axis=-1) - least) / np.float32(15)
    numbers = ((blocks - least[..., None]) * _inverse(step)[..., None] + np.float32(0.5)).astype(np.uint8)
    return Numbers(step.astype(np.float16), least.astype(np.float16), np.minimum(numbers, 15))


QUANTISED: dict[str, Callable[[np.ndarray], Numbers]] = {"q8_0": q8_0, "q4_0": q4_0, "q4_1": q4_1}


def _inverse(step: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        inverse: np.ndarray = np.where(step == 0, np.float32(0), np.float32(1) / step)
    return inverse
