"""One codebook under training: the engine's search, and vectors whose gradients reach the entries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_mpi.codec.codebook import Codebook
from astra_mpi.train.noise import Noise

#: rows searched at once on the CPU
ROWS = 256


@dataclass
class Use:
    """What one batch made of one codebook, on this rank."""

    codes: Tensor  # (n, C)
    targets: list[Tensor]  # C of (n, W): what each code stands for
    rest: Tensor  # (n, D): x - x^


def nearest(x: Tensor, table: Tensor, half_norms: Tensor) -> Tensor:
    """(n,) argmin_k ||table_k||^2 / 2 - <x, table_k> of x (n, W) and table (K, W), the lowest index on a tie.

    On the CPU by blocks whose scores stay in cache, and by NumPy's argmin, which uses vector instructions.
    """
    if x.device.type != "cpu":
        return torch.addmm(half_norms, x, table.T, alpha=-1).argmin(dim=1)
    codes = np.empty(len(x), dtype=np.int64)
    for a in range(0, len(x), ROWS):
        scores = torch.addmm(half_norms, x[a : a + ROWS], table.T, alpha=-1)  # (rows, K)
        scores.numpy().argmin(axis=1, out=codes[a : a + ROWS])
    return torch.from_numpy(codes)


class EntrySum(torch.autograd.Function):
    """entries (C, K, W), codes (n, C) -> (n, W): the sum of a row of each table, in order."""

    @staticmethod
    def forward(ctx: Any, entries: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.shape = entries.shape
        total = entries[0].index_select(0, codes[:, 0])
        for c in range(1, len(entries)):
            total += entries[c].index_select(0, codes[:, c])
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (codes,) = ctx.saved_tensors
        gradient = grads[0].new_zeros(ctx.shape)
        for c in range(len(gradient)):
            gradient[c].index_add_(0, codes[:, c], grads[0])
        return gradient, None


class Quantiser:
    """One codebook. Its search is the engine's: exact, or in the codebook's subspace, which stays as it is."""

    def __init__(self, book: Codebook, learns: bool, device: torch.device | str = "cpu") -> None:
        self.made, self.rule, self.width, self.ordinary = book, book.rule, book.width, book.ordinary
        self.entries = torch.tensor(book.entries, device=device, requires_grad=learns)  # (C, K, W)
        if learns and self.ordinary is not None:
            self.entries.register_hook(self._of_what_moves)
        self.basis = None if book.basis is None else torch.tensor(book.basis, device=device)
        self.counts = torch.zeros(self.entries.shape[:2], device=device)  # (C, K): moving averages of uses,
        self.sums = self.entries.detach().clone()  # and of the sums (C, K, W) of what was coded
        self.noise = Noise(book.width, device)

    @property
    def n_codes(self) -> int:
        return len(self.entries)

    @property
    def learned(self) -> dict[str, Tensor]:
        """What has gradients, by name."""
        return {"entries": self.entries} if self.entries.requires_grad else {}

    def codes(self, x: Tensor, near: Tensor | None = None) -> Tensor:
        """x (n, D) -> (n, C): the nearest entries, the lowest index on a tie.

        near (n,): which rows have all codes, where others have fewer; None: all.
        """
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            entries, x = self.entries.detach(), x.float()
            searched, x = (entries, x) if self.basis is None else (entries @ self.basis, x @ self.basis)
            half_norms = searched.square().sum(dim=2) / 2  # (C, K)
            n, size, width = len(x), *searched.shape[1:]
            chosen = torch.full((self.n_codes, n), size - 1, device=x.device)
            rows = torch.arange(n, device=x.device)
            target, row = x, None
            for c, table in enumerate(searched):
                if c == self.ordinary and near is not None:
                    rows = near.nonzero()[:, 0]
                    x, target, row = x[rows], target[rows], None if row is None else row[rows]
                target = self.rule.target(c, x, target, row, width)
                code = nearest(target, table, half_norms[c])
                row = table[code]
                chosen[c, rows] = code
            return chosen.T.contiguous()

    def encode(self, x: Tensor, given: Tensor | None = None, near: Tensor | None = None) -> Use:
        """x (n, D) -> its codes, or the `given` ones (n, C), and what they stand for."""
        codes = self.codes(x, near) if given is None else given
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            targets: list[Tensor] = []
            row: Tensor | None = None
            for c, table in enumerate(self.entries.detach()):
                last = targets[-1] if targets else None
                targets.append(self.rule.target(c, x.float(), last, row, self.entries.shape[2]))
                row = table[codes[:, c]]
            return Use(codes, targets, x.float() - self.decode(codes))

    def decode(self, codes: Tensor) -> Tensor:
        """x^ (n, D) of codes (n, C), with gradients to the entries where they have any."""
        if self.entries.shape[2] == self.width:
            total: Tensor = EntrySum.apply(self.entries, codes)
            return total
        rows = [table[codes[:, c]] for c, table in enumerate(self.entries)]
        return self.rule.combine(torch.stack(rows), self.width)

    def _of_what_moves(self, gradient: Tensor) -> Tensor:
        """Without that of the entries that add nothing, of rows without further codes."""
        gradient = gradient.clone()
        gradient[self.ordinary :, -1] = 0
        return gradient

    @property
    def book(self) -> Codebook:
        """As the engine reads it."""
        return replace(self.made, entries=self.entries.detach().cpu().numpy())

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        basis = {} if self.basis is None else {"basis": self.basis}
        return {"entries": self.entries.data, "counts": self.counts, "sums": self.sums} | basis | self.noise.state()
