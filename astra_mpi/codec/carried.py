"""Keys and values of a block from an earlier vector of the token: a map to what the block takes, and its projection, as
one matrix (docs/explanation/waiting.md).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.codec.leaps import matrix
from astra_mpi.codec.predictor import Predictor
from astra_mpi.codec.tables import KeyNorm, Projection
from astra_mpi.device.scratch import Scratch
from astra_mpi.device.weights import product


def carried(predictor: Predictor, projection: Projection) -> Projection:
    """Of the map `predictor` ((1 + n) D to D) and of `projection`, on the host and without a norm."""
    weight = np.asarray(projection.weight, np.float64)
    both = matrix(predictor) @ weight  # ((1 + n) D, 2 d_kv)
    bias = predictor.bias @ weight + projection.bias
    return projection._replace(weight=both.astype(np.float32), bias=bias.astype(np.float32))


class CarriedRows:
    """[K | V] of vectors themselves, by one product."""

    def __init__(self, weight: Any, bias: Any, scratch: Scratch, key_norm: KeyNorm | None) -> None:
        self.weight, self.bias, self.scratch, self.key_norm = weight, bias, scratch, key_norm

    def __call__(self, x: np.ndarray, kernels: ModuleType) -> np.ndarray:
        """x (m, D), with inputs beside it (m, (1 + n) D), -> (m, 2 d_kv), a new array."""
        kv = product(x, self.weight, self.scratch.xp.empty((len(x), len(self.bias)), x.dtype), kernels, self.scratch)
        kv += self.bias
        if self.key_norm is not None:
            self.key_norm(kv[:, : kv.shape[1] // 2], kernels)
        return kv
