"""What llama.cpp's converter did to tensors, undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Arrange = Callable[[np.ndarray], np.ndarray]
#: config.json -> an arrangement of a tensor's values
Arranger = Callable[[dict[str, Any]], Arrange]


def turned_halves(heads: str) -> Arranger:
    """Rows of queries or keys, of config[heads] heads: a head's numbers 2a and 2a + 1 turn as a pair in the file, a
    and a + d / 2 in Hugging Face's checkpoint."""

    def arranger(config: dict[str, Any]) -> Arrange:
        def arrange(array: np.ndarray) -> np.ndarray:
            pairs = array.reshape(config[heads], -1, 2, *array.shape[1:])
            return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)

        return arrange

    return arranger


def plus_one_taken(config: dict[str, Any]) -> Arrange:
    """Gemma multiplies by 1 + weight; the file has the sum."""
    return lambda array: array - np.float32(1)


def transposed(config: dict[str, Any]) -> Arrange:
    """Matrices of GPT-2 are (in, out) in its checkpoint, and (out, in) in the file."""
    return lambda array: np.ascontiguousarray(array.T)


def arranged_shape(arranger: Arranger, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a tensor of this shape has then."""
    return shape[::-1] if arranger is transposed else shape


def separate_to_heads(config: dict[str, Any]) -> Arrange:
    """Rows of GPT-NeoX: queries, keys and values of all heads in the file, head by head in its checkpoint."""
    heads = config["num_attention_heads"]

    def arrange(array: np.ndarray) -> np.ndarray:
        parts = array.reshape(3, heads, -1, *array.shape[1:])
        return np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(array.shape)

    return arrange
