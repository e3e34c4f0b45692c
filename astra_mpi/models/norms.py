"""Norms of queries and keys, head by head or over all heads, between their projection and their rotation."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from astra_mpi.device.xp import module_of


class HeadNorm:
    """Of queries, or of keys, in place.

    kind: "head", RMSNorm of every head with one weight (d,); "heads", LayerNorm of every head without a bias, with a
    weight of its own, (H d,) side by side; "whole", RMSNorm over all heads together, (H d,).
    """

    def __init__(self, kind: str, weight: np.ndarray, d_head: int, eps: float, scale: float = 1.0) -> None:
        """scale: of what comes out."""
        self.kind, self.eps = kind, eps
        self.weight = weight if scale == 1 else weight * weight.dtype.type(scale)
        self.width = len(weight) if kind == "whole" else d_head
        xp = module_of(weight)
        self.ones, self.zeros = xp.ones(d_head, weight.dtype), xp.zeros(d_head, weight.dtype)

    def __call__(self, x: np.ndarray, kernels: ModuleType) -> None:
        """x (n, H d), its rows any distance apart."""
        if not x.size:
            return
        rows = module_of(x).ascontiguousarray(x).reshape(-1, self.width)
        if self.kind == "heads":
            normed = kernels.layer_norm(rows, self.ones, self.zeros, self.eps).reshape(x.shape)
            x[...] = normed * self.weight
        else:
            x[...] = kernels.rms_norm(rows, self.weight, self.eps).reshape(x.shape)
