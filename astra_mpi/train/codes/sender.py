"""What far ranks see of a token in training: its codes, or its state (docs/explanation/training.md).

Without predictions, far rows are x + stopgrad(x^ + lambda xi - x): gradients pass as if nothing had been quantised
(straight through). With `update = "adam"` the entries themselves have gradients, through x^; with "ema" they follow the
mean of what they stand for.

With predictions they are states P + x^, where codes are taken as they were found: gradients reach the entries and the
predictor, and through P the blocks before. Straight through, P would cancel out. Where codes are late, far ranks see P.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_mpi.train.codes.codebooks import Codebooks, split
from astra_mpi.train.codes.quantiser import Quantiser, Use
from astra_mpi.train.codes.scalar import Scalars
from astra_mpi.train.cuts import View


class Sender:
    """One forward pass's `send`: quantises, keeps what was used, adds up the commitment.

    A block may be computed twice, the second time for its gradients: `carried` is what a block takes over from the one
    before it, and its codes are searched once.
    """

    def __init__(
        self,
        codebooks: Codebooks,
        real: Tensor | None,
        seeds: np.ndarray | None = None,
        noise: float = 0.0,
        given: list[Tensor] | None = None,
        near: Tensor | None = None,
        observes: bool = True,
    ) -> None:
        """real (B, S) marks tokens, None: all are. seeds (blocks, parts, B) of the noise. given: codes of every block
        that has some, (n, C) with the tokens packed, instead of the nearest ones. near (n,): which of these have all
        codes. observes: whether `uses` is kept.
        """
        self.codebooks, self.real, self.seeds, self.noise, self.near = codebooks, real, seeds, noise, near
        self.observes, self.uses = observes, list[Use]()
        self.state = torch.zeros(0)  # (n, D) of predicted codes: what all ranks hold of each token
        self.inputs = torch.zeros(0)  # (n, inputs D): what the next state is predicted from besides
        self.commitment = torch.zeros(())  # sum over tokens and blocks of ||x - stopgrad(x^)||^2
        self._codes: dict[tuple[int, int], Tensor] = {}
        for coded, codes in enumerate(given or []):
            block = coded + codebooks.first_coded
            self._codes |= {(block, p): part for p, part in enumerate(split(codes, codebooks.blocks[block]))}
        self._given = given is not None

    @property
    def carried(self) -> tuple[Tensor, Tensor]:
        """From block to block."""
        return self.state, self.commitment

    @carried.setter
    def carried(self, carried: tuple[Tensor, Tensor]) -> None:
        self.state, self.commitment = carried

    def __call__(self, i: int, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.codebooks.predicts:
            return (self._followed(i, parts[0]),)
        if i < self.codebooks.first_coded:
            return parts
        return tuple(
            self._seen(i, p, book, part)
            for p, (book, part) in enumerate(zip(self.codebooks.blocks[i], parts, strict=True))
        )

    def _followed(self, i: int, part: Tensor) -> Tensor:
        """Attention inputs (B, S, D) -> states."""
        rows = self._packed(part).detach()
        if i == 0:
            self.state, self.inputs = rows, self._packed(self._before(part.detach()))
            return part
        predictor, (book,) = self.codebooks.predictors[i], self.codebooks.blocks[i]
        assert predictor is not None
        with torch.autocast(rows.device.type, enabled=False):
            expected = predictor(self.state, self.inputs)
            codes = self._coded(i, 0, book, (rows - expected).detach())
            self.state = expected + book.decode(codes)
            self.commitment = self.commitment + (rows - self.state).square().sum()
        late = self.codebooks.late and self.codebooks.config.is_late(i)
        return self._placed(expected if late else self.state, part)

    def _seen(self, i: int, p: int, book: Quantiser | Scalars, part: Tensor) -> Tensor:
        """(B, S, W) as others see it."""
        rows = self._packed(part)
        codes = self._coded(i, p, book, rows.detach())
        with torch.autocast(rows.device.type, enabled=False):
            approximation = book.decode(codes)
        self.commitment = self.commitment + (rows - approximation).square().sum()
        seen = approximation + (rows - rows.detach())
        if self.noise and self.seeds is not None:
            lengths = [part.shape[1]] * len(part) if self.real is None else self.real.sum(dim=1).tolist()
            seen = seen + self.noise * book.noise.draw(self.seeds[i, p], lengths)
        return self._placed(seen, part)

    def _coded(self, i: int, p: int, book: Quantiser | Scalars, rows: Tensor) -> Tensor:
        """Codes (n, C) of rows (n, W): those of the first time, or the given ones."""
        again = (i, p) in self._codes
        if not again:
            self._codes[i, p] = book.codes(rows, self.near)
        codes = self._codes[i, p]
        if self.observes and (self._given or not again):
            self.uses.append(book.encode(rows, codes))
        return codes

    def _before(self, part: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, n D): of each place and the n - 1 before it, zeros before the first."""
        n, (_, places, width) = self.codebooks.config.inputs, part.shape
        shifted = [torch.nn.functional.pad(part, (0, 0, k, 0))[:, :places] for k in range(n)]
        return torch.cat(shifted, dim=2) if shifted else part.new_zeros((*part.shape[:2], 0 * width))

    def _packed(self, part: Tensor) -> Tensor:
        """(B, S, W) -> (n, W) float32 of the tokens."""
        return (part.flatten(0, 1) if self.real is None else part[self.real]).float()

    def _placed(self, rows: Tensor, part: Tensor) -> Tensor:
        """(n, W) -> (B, S, W), zeros where there is no token."""
        if self.real is None:
            return rows.view_as(part)
        return torch.zeros(part.shape, device=rows.device).index_put((self.real,), rows)


def sender_for(codebooks: Codebooks, view: View, coded: np.ndarray, causal: bool, **options: Any) -> Sender:
    """The sender of a pass under `view`, where coded (B, S) marks the content places that have codes."""
    real = None if coded.all() else torch.from_numpy(coded).to(view.rank.device)
    near = view.near_tokens(codebooks.config.near, causal, coded)
    return Sender(codebooks, real, near=near, **options)
