"""A predictor under training: what every rank expects of a token, with gradients to its maps and to its bias."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from astra_mpi.codec.predictor import Predictor


class Expecting:
    """keep s + x F_1 .. F_m + b of states s, and of x, which are these and inputs; keep stays as it was fitted."""

    def __init__(self, made: Predictor, learns: bool, device: torch.device | str = "cpu") -> None:
        self.made = made
        self.factors = [torch.tensor(f, device=device, requires_grad=learns) for f in made.factors]
        self.bias = torch.tensor(made.bias, device=device, requires_grad=learns)

    def __call__(self, state: Tensor, inputs: Tensor) -> Tensor:
        """States (n, D) and inputs (n, n_inputs D) -> predictions (n, D), float32."""
        x = torch.cat([state, inputs], dim=1)
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
