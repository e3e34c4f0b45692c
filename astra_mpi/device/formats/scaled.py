"""Formats with one factor per output of a linear layer, and per row of the word embedding."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from astra_mpi.device.formats.narrow import Narrow, is_layer


class Scaled(Narrow):
    """An output's largest magnitude is stored as `largest`. Other matrices than layers and words stay float32."""

    layers_only = True
    largest: ClassVar[float]

    @classmethod
    def scale_shape(cls, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1, shape[1]) if is_layer(name, shape) else (shape[0], 1)

    @classmethod
    def scale_for(cls, name: str, array: np.ndarray) -> np.ndarray:
        axis = 0 if is_layer(name, array.shape) else 1
        largest = np.maximum(array.max(axis=axis, keepdims=True), -array.min(axis=axis, keepdims=True))
        scale = largest / np.float32(cls.largest)
        scale[scale < np.finfo(np.float32).tiny] = 1  # rows of zeros, or as good as that
        return scale

    @classmethod
    def scale_of_tensor(cls, weight: Any, inputs: tuple[int, ...]) -> Any:
        """The same for a tensor of PyTorch, in its own words."""
        scale = weight.abs().amax(dim=inputs, keepdim=True) / cls.largest
        scale[scale < np.finfo(np.float32).tiny] = 1
        return scale
