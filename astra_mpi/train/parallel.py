"""Several ranks train one model: sums and gathers over buffers, with the same bits on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mpi4py import MPI


def add_up(comm: MPI.Comm, tensors: Sequence[Tensor]) -> None:
    """Collective: replace float32 tensors by their sums over ranks, in one buffer.

    Rank 0 adds and sends: an all-reduce may round differently on different ranks, and models would drift apart.
    """
    if comm.Get_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1).cpu() for tensor in tensors]).numpy()
    total = np.empty_like(flat)
    comm.Reduce(flat, total, root=0)
    comm.Bcast(total, root=0)
    parts = torch.from_numpy(total).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def add_numbers(comm: MPI.Comm, numbers: Sequence[float] | np.ndarray) -> np.ndarray:
    """Collective: sums over ranks, float64."""
    total = np.array(numbers, np.float64)
    if comm.Get_size() > 1:
        mine = total.copy()
        comm.Reduce(mine, total, root=0)
        comm.Bcast(total, root=0)
    return total


def all_rows(comm: MPI.Comm, rows: Tensor) -> tuple[Tensor, int]:
    """Collective: (rows (n, W) of all ranks one after another without gradients, where this rank's begin)."""
    if comm.Get_size() == 1:
        return rows.detach(), 0
    mine = np.ascontiguousarray(rows.detach().float().cpu().numpy())
    counts = np.empty(comm.Get_size(), np.int64)
    comm.Allgather(np.array([len(mine)], np.int64), counts)
    every = np.empty((int(counts.sum()), mine.shape[1]), np.float32)
    comm.Allgatherv(mine, (every, counts * mine.shape[1]))
    return torch.from_numpy(every).to(rows.device), int(counts[: comm.Get_rank()].sum())
