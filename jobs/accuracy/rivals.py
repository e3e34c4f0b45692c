"""What untrained rivals make of far tokens, for the twin in jobs/accuracy/run.py: int8 rows, or means of tokens.

A far token that is seen as the mean of its run weighs in the softmax as the run's mean with log(length) added to its
score does, so that `Means` is segment means (arXiv 2507.12145) as the engine computes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from astra_mpi.errors import InputError
from astra_mpi.strategies.wire import pack_rows, row_bytes, unpack_rows
from astra_mpi.train.cuts import View


class Int8:
    """The rows of sp:int8: written and read again."""

    def __init__(self, view: View, ratio: int = 1) -> None: ...

    @staticmethod
    def bits_per_token(width: int, ratio: int = 1) -> float:
        return 8 * row_bytes(width, "int8")

    def __call__(self, i: int, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (x,) = parts
        rows = pack_rows(x.flatten(0, 1).numpy(), "int8").reshape(-1, row_bytes(x.shape[-1], "int8"))
        return (torch.from_numpy(unpack_rows(rows, "int8")).view_as(x),)


class Means:
    """Means of `ratio` consecutive tokens of a rank's slice, the last one of fewer."""

    def __init__(self, view: View, ratio: int) -> None:
        owner = view.rank[:, view.n_replicas :]  # (B or 1, S)
        place = torch.arange(owner.shape[1]).expand_as(owner)
        starts = torch.cat([torch.ones_like(owner[:, :1], dtype=torch.bool), owner[:, 1:] != owner[:, :-1]], dim=1)
        in_slice = place - torch.where(starts, place, 0).cummax(dim=1).values
        self.run = (starts | (in_slice % ratio == 0)).cumsum(dim=1) - 1  # (B or 1, S)

    @staticmethod
    def bits_per_token(width: int, ratio: int) -> float:
        return 32 * width / ratio

    def __call__(self, i: int, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (x,) = parts
        run = self.run.expand(len(x), -1).unsqueeze(-1).expand_as(x)
        sums = torch.zeros_like(x).scatter_add_(1, run, x)
        lengths = torch.zeros_like(x).scatter_add_(1, run, torch.ones_like(x))
        return ((sums / lengths.clamp(min=1)).gather(1, run),)


RIVALS = {"int8": Int8, "means": Means}


def rival(text: str) -> tuple[type[Int8] | type[Means], int]:
    """ "int8" or "means:RATIO" -> (sender, ratio)."""
    name, _, ratio = text.partition(":")
    if name not in RIVALS or (name == "means") != ratio.isdigit():
        raise InputError(f"a row's rival is '{text}'; write int8 or means:RATIO")
    return RIVALS[name], int(ratio or 1)
