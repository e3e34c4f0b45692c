"""AdamW with a warm-up and a cosine; a gradient that is added up over ranks and clipped."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from astra_mpi.train.averages import Dead
from astra_mpi.train.codes.codebooks import Codebooks
from astra_mpi.train.deck import TrainSection
from astra_mpi.train.parallel import add_up
from astra_mpi.train.twin import Twin, trainable

if TYPE_CHECKING:
    from mpi4py import MPI


class Optimiser:
    """What learns, by name."""

    def __init__(self, twin: Twin, codebooks: Codebooks | None, train: TrainSection, comm: MPI.Comm) -> None:
        self.train, self.comm = train, comm
        self.named = {name: twin.w[name].requires_grad_() for name in trainable(twin.w, train.learn)}
        groups: list[dict[str, Any]] = [
            {"params": [t for t in self.named.values() if t.ndim == 2], "lr": train.lr},
            {"params": [t for t in self.named.values() if t.ndim != 2], "lr": train.lr, "weight_decay": 0.0},
        ]
        for learned in codebooks.learned if codebooks else []:
            self.named[learned.name] = learned.tensor
            rate = (train.predictor_lr if learned.predicts else train.codebook_lr) * learned.scale
            groups.append({"params": [learned.tensor], "lr": rate, "weight_decay": 0.0})
        groups = [group for group in groups if group["params"]]
        self.rates = [group["lr"] for group in groups]
        one_pass = twin.device.type == "cpu"  # over the numbers, where each would be read several times
        self.adam = torch.optim.AdamW(
            groups, betas=(0.9, 0.95), weight_decay=train.weight_decay, fused=one_pass or None
        )

    def step(self, step: int) -> float:
        """Collective: one update from this rank's share of the gradient. -> the joint gradient's norm, which is not
        finite if nothing was changed.
        """
        gradients = [t.grad if t.grad is not None else torch.zeros_like(t) for t in self.named.values()]
        add_up(self.comm, gradients)
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
        if math.isfinite(norm):
            scale = min(1.0, self.train.clip / max(norm, 1e-12))
            for tensor, gradient in zip(self.named.values(), gradients, strict=True):
                tensor.grad = gradient.mul_(scale)
            for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
                group["lr"] = rate * schedule(step, self.train)
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return norm

    def forget(self, dead: Dead) -> None:
        """Revived entries have no past."""
        for book, c, k in dead:
            state = self.adam.state.get(book.entries)
            if state:
                state["exp_avg"][c, k] = 0
                state["exp_avg_sq"][c, k] = 0

    def state(self) -> dict[str, Tensor]:
        """Highest rates, which follow from the entries at the start, and Adam's moments by name."""
        return {"rates": torch.tensor(self.rates, dtype=torch.float64)} | {
            f"{key}.{name}": value
            for name, tensor in self.named.items()
            for key, value in self.adam.state.get(tensor, {}).items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        self.rates = state["rates"].tolist()
        for name, tensor in self.named.items():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in state]
            if keys:
                self.adam.state[tensor] = {key: state[f"{key}.{name}"].clone() for key in keys}


def schedule(step: int, train: TrainSection) -> float:
    """Rate over the highest one: a line up, then a cosine down to `floor`."""
    warm = round(train.warmup * train.steps)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(train.steps - warm, 1)
    return train.floor + (1 - train.floor) * (1 + math.cos(math.pi * done)) / 2
