"""The linear layers of a block, in the form in which its products take them: made once, when first asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.device.memory import Memory
from astra_mpi.device.packed import Packed, for_products, is_narrow, pack, packs
from astra_mpi.device.weights import Narrow, SideBySide, forget, moved
from astra_mpi.kernels.rest import Rest

Layer = np.ndarray | Narrow | Packed


class Layers:
    """Weights by the names of their layers. Where products are narrow, packed or stored narrow; else as they are, or
    moved from the file's pages to large ones."""

    def __init__(self, weights: Mapping[str, Any], kernels: ModuleType, memory: Memory) -> None:
        """weights: a block's, by their names inside it, such as "fc1.weight"; they may go once layers are made."""
        self._weights, self._kernels, self._memory = weights, kernels, memory
        self._made: dict[str, Layer] = {}
        self._sources: set[str] = set()  # the weights that they were made from

    def __getitem__(self, name: str) -> Layer:
        if name not in self._made:
            weight: Layer = self._weights[f"{name}.weight"]
            moves = self._memory.moves and not is_narrow(self._kernels)
            made: Any = moved(weight, self._memory) if moves else for_products(weight, self._kernels, self._memory)
            if made is weight:
                return weight
            self._keep(name, made, [name])
        return self._made[name]

    def joined(self, names: str, scales: Sequence[float]) -> Packed | SideBySide:
        """Layers of one letter each, side by side; if they can be packed, what each gives comes scaled."""
        if names not in self._made:
            weights = [self._weights[f"{name}.weight"] for name in names]
            if not all(packs(weight, self._kernels) for weight in weights):
                return SideBySide(*(self[name] for name in names))
            self._keep(names, pack(weights, self._kernels, self._memory, scales), list(names))
        made = self._made[names]
        assert isinstance(made, Packed)
        return made

    def _keep(self, name: str, made: Layer, sources: list[str]) -> None:
        self._made[name] = made
        for source in sources:
            self._sources.add(f"{source}.weight")
            forget(self._weights[f"{source}.weight"])

    def rest(self, activation: str, eps: float, rms: bool) -> Rest | None:
        """All layers after attention and the norm between them, for kernels that compute them at once; None where they
        do not. Made of the weights as they are now."""
        o, fc1, fc2 = (self[name] for name in ("o", "fc1", "fc2"))
        if not hasattr(self._kernels, "after_attention"):
            return None
        if not (isinstance(o, np.ndarray) and isinstance(fc1, np.ndarray) and isinstance(fc2, np.ndarray)):
            return None
        zeros = {name: np.zeros(weight.shape[1], np.float32) for name, weight in (("o", o), ("fc1", fc1), ("fc2", fc2))}
        bias = {name: self._weights.get(f"{name}.bias", zeros[name]) for name in zeros}
        norm = self._weights["norm2.weight"], None if rms else self._weights["norm2.bias"], eps
        return Rest(o, bias["o"], *norm, fc1, bias["fc1"], activation, fc2, bias["fc2"])

    @property
    def replaced(self) -> frozenset[str]:
        """The weights that products do not read any more."""
        return frozenset(self._sources)

    @property
    def nbytes(self) -> int:
        """Bytes of the layers made here."""
        return sum(made.nbytes for made in self._made.values())
