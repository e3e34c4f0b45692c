"""A predictor under training: what every rank expects of a token, with gradients to its maps and to its bias."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from astra_mpi.codec.predictor import Predictor


class Expecting:
    """keep s + s F_1 .. F_m + b of states s; keep stays as it was fitted."""

    def __init__(self, made: Predictor, learns: bool, device: torch.device | str = "cpu") -> None:
        self.made = made
        self.factors = [torch.tensor(f, device=device, requires_grad=learns) for f in made.factors]
        self.bias = torch.tensor(made.bias, device=device, requires_grad=learns)

    def __call__(self, state: Tensor) -> Tensor:
        """States (n, D) -> predictions (n, D), float32."""
        x = state
        for factor in self.factors:
            x = x @ factor
        return x + self.made.keep * state + self.bias

    @property
    def learned(self) -> dict[str, Tensor]:
        """What has gradients, by name."""
        return self.state() if self.bias.requires_grad else {}

    @property
    def predictor(self) -> Predictor:
        """As the engine reads it."""
        factors = tuple(factor.detach().cpu().numpy() for factor in self.factors)
        return replace(self.made, factors=factors, bias=self.bias.detach().cpu().numpy())

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {f"factor{n}": factor for n, factor in enumerate(self.factors)} | {"bias": self.bias}
