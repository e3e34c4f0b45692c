"""After a step: codebooks and noise follow the joint batch; entries that nothing uses begin anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from astra_mpi.train.codes.codebooks import Codebooks
from astra_mpi.train.codes.quantiser import Quantiser, Use
from astra_mpi.train.parallel import add_up

if TYPE_CHECKING:
    from mpi4py import MPI

Dead = list[tuple[Quantiser, int, int]]  # codebook, code, entry


class Averages:
    """Moving averages with `decay`, the same on all ranks of `comm` and for any number of them."""

    def __init__(self, codebooks: Codebooks, comm: MPI.Comm, decay: float, revive: float, noisy: bool) -> None:
        self.codebooks, self.comm, self.decay, self.revive, self.noisy = codebooks, comm, decay, revive, noisy
        self.books = [q for q in codebooks.used if isinstance(q, Quantiser)]
        follows = any(not q.entries.requires_grad for q in self.books)
        self.needed = follows or noisy or revive > 0  # whether `update` changes anything

    @torch.no_grad()
    def update(self, uses: list[Use], seed: int, step: int, late: bool = False) -> Dead:
        """Collective: take in what a joint batch used, of every codebook in order. -> the entries that were revived:
        none if it is late, and they would not find their place.
        """
        stats = [self._stats(q, use) for q, use in zip(self.books, uses, strict=True)]
        add_up(self.comm, [t for s in stats for t in s.values()])
        for q, s in zip(self.books, stats, strict=True):
            self._follow(q, s)
        return self._revive_all(uses, seed, step) if self.revive and not late else []

    def _stats(self, q: Quantiser, use: Use) -> dict[str, Tensor]:
        n_codes = len(q.entries)
        ones = torch.ones(len(use.codes), device=use.codes.device)
        counts = [torch.zeros_like(q.counts[c]).index_add_(0, use.codes[:, c], ones) for c in range(n_codes)]
        stats = {"counts": torch.stack(counts)}
        if not q.entries.requires_grad:
            sums = [torch.zeros_like(q.sums[c]).index_add_(0, use.codes[:, c], use.targets[c]) for c in range(n_codes)]
            stats["sums"] = torch.stack(sums)
        if self.noisy:
            stats |= {"mean": use.rest.sum(dim=0), "second": use.rest.T @ use.rest}
        return stats

    def _follow(self, q: Quantiser, stats: dict[str, Tensor]) -> None:
        n = float(stats["counts"][0].sum())
        if n == 0:
            return
        if not float(q.counts.sum()):  # the entries as they start count as much as a batch
            q.counts.fill_(n / q.counts.shape[1])
            q.sums.copy_(q.entries * q.counts.unsqueeze(2))
        q.counts.lerp_(stats["counts"], 1 - self.decay)
        if "sums" in stats:
            q.sums.lerp_(stats["sums"], 1 - self.decay)
            q.entries.copy_(q.sums / q.counts.clamp(min=1e-8).unsqueeze(2))
        if "mean" in stats:
            q.noise.update(stats["mean"] / n, stats["second"] / n, self.decay)

    def _revive_all(self, uses: list[Use], seed: int, step: int) -> Dead:
        """Entries used less than `revive` of the mean are put on random rows of the joint batch."""
        starts = self._starts(len(uses[0].codes))
        dead: Dead = []
        rows: list[Tensor] = []
        for b, (q, use) in enumerate(zip(self.books, uses, strict=True)):
            unused = (q.counts < self.revive * q.counts.mean(dim=1, keepdim=True)).nonzero().tolist()
            rng = np.random.default_rng([seed, 4, step, b])
            for c, k in unused:
                place = int(rng.integers(starts[-1])) - starts[self.comm.Get_rank()]
                mine = 0 <= place < len(use.codes)
                rows.append(use.targets[c][place].clone() if mine else torch.zeros_like(q.entries[c, k]))
                dead.append((q, c, k))
        add_up(self.comm, rows)
        for (q, c, k), row in zip(dead, rows, strict=True):
            mean = float(q.counts[c].mean())
            q.entries[c, k], q.counts[c, k], q.sums[c, k] = row, mean, row * mean
        return dead

    def _starts(self, n_rows: int) -> list[int]:
        """First row of each rank in the joint batch, and their number."""
        counts = np.empty(self.comm.Get_size(), np.int64)
        self.comm.Allgather(np.array([n_rows], np.int64), counts)
        return [0, *np.cumsum(counts).tolist()]
