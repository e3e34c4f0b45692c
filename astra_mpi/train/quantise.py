"""Codebooks under training: codes, what far ranks see of a token, and moving averages (docs/explanation/training.md).

Far rows are x + stopgrad(x^ + lambda xi - x): gradients pass as if nothing had been quantised (straight through). With
`update = "adam"` the entries themselves have gradients, through x^; with "ema" they follow the mean of what they stand
for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
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


class Quantiser:
    """One codebook. Its search is the engine's: exact, or in the codebook's subspace, which stays as it is."""

    def __init__(self, book: Codebook, learns: bool, device: torch.device | str = "cpu") -> None:
        self.kind, self.rule, self.width, self.error_growth = book.kind, book.rule, book.width, book.error_growth
        self.entries = torch.tensor(book.entries, device=device, requires_grad=learns)  # (C, K, W)
        self.basis = None if book.basis is None else torch.tensor(book.basis, device=device)
        self.counts = torch.zeros(self.entries.shape[:2], device=device)  # (C, K): moving averages of uses,
        self.sums = self.entries.detach().clone()  # and of the sums (C, K, W) of what was coded
        self.noise = Noise(book.width, device)

    def encode(self, x: Tensor, given: Tensor | None = None) -> Use:
        """x (n, D) -> codes, the nearest entries, the lowest index on a tie; or the `given` ones (n, C)."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            entries = self.entries.detach()
            searched = entries if self.basis is None else entries @ self.basis
            half_norms = searched.square().sum(dim=2) / 2  # (C, K)
            targets: list[Tensor] = []
            codes: list[Tensor] = []
            target: Tensor | None = None
            row: Tensor | None = None
            for c, table in enumerate(entries):
                target = self.rule.target(c, x.float(), target, row, entries.shape[2])
                sought = target if self.basis is None else target @ self.basis
                code = nearest(sought, searched[c], half_norms[c]) if given is None else given[:, c]
                row = table[code]
                targets.append(target)
                codes.append(code)
            used = torch.stack(codes, dim=1)
            return Use(used, targets, x.float() - self.decode(used))

    def decode(self, codes: Tensor) -> Tensor:
        """x^ (n, D) of codes (n, C), with gradients to the entries where they have any."""
        rows = [table[codes[:, c]] for c, table in enumerate(self.entries)]
        return self.rule.combine(torch.stack(rows), self.width)

    @property
    def book(self) -> Codebook:
        """As the engine reads it."""
        basis = None if self.basis is None else self.basis.cpu().numpy()
        return Codebook(self.kind, self.entries.detach().cpu().numpy(), self.width, basis, self.error_growth)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        basis = {} if self.basis is None else {"basis": self.basis}
        return {"entries": self.entries.data, "counts": self.counts, "sums": self.sums} | basis | self.noise.state()


class Codebooks:
    """The codebooks of all blocks; with first = "inputs", those of the first block are not used and do not learn."""

    def __init__(self, codec: Codec, learns: bool, device: torch.device | str = "cpu", first: str = "codes") -> None:
        self.config, self.first_coded = codec.config, int(first == "inputs")
        self.blocks = [
            [Quantiser(book, learns and i >= self.first_coded, device) for book in block.codebooks]
            for i, block in enumerate(codec.blocks)
        ]

    @property
    def all(self) -> list[Quantiser]:
        return [book for block in self.blocks for book in block]

    @property
    def used(self) -> list[Quantiser]:
        return [book for block in self.blocks[self.first_coded :] for book in block]

    @property
    def codec(self) -> Codec:
        return Codec(self.config, tuple(BlockCodec(tuple(q.book for q in block)) for block in self.blocks))

    def state(self) -> dict[str, Tensor]:
        return {f"codebooks.{i}.{name}": t for i, q in enumerate(self.all) for name, t in q.state().items()}

    @staticmethod
    def codec_of(state: dict[str, Tensor], config: CodecConfig, width: int) -> Codec:
        """The codec whose `state` this is."""
        parts = 2 if config.site == "kv" else 1
        n_books = sum(name.startswith("codebooks.") and name.endswith(".entries") for name in state)
        books = []
        for i in range(n_books):
            entries, basis = (state.get(f"codebooks.{i}.{name}") for name in ("entries", "basis"))
            assert entries is not None
            books.append(Codebook(config.kind, entries.numpy(), width, None if basis is None else basis.numpy()))
        return Codec(config, tuple(BlockCodec(tuple(books[i : i + parts])) for i in range(0, n_books, parts)))


def _split(codes: Tensor, books: list[Quantiser]) -> list[Tensor]:
    """Codes (n, C) -> those of each codebook."""
    return list(codes.split([len(book.entries) for book in books], dim=1))


class Sender:
    """One forward pass's `send`: quantises, keeps what was used, adds up the commitment."""

    def __init__(
        self,
        codebooks: Codebooks,
        real: Tensor | None,
        seeds: np.ndarray | None = None,
        noise: float = 0.0,
        given: list[Tensor] | None = None,
    ) -> None:
        """real (B, S) marks tokens, None: all are. seeds (blocks, parts, B) of the noise. given: codes of every block
        that has some, (n, C) with the tokens packed, instead of the nearest ones.
        """
        self.codebooks, self.real, self.seeds, self.noise, self.given = codebooks, real, seeds, noise, given
        self.uses: list[Use] = []
        self.commitment: Tensor | float = 0.0  # sum over tokens and blocks of ||x - stopgrad(x^)||^2

    def __call__(self, i: int, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        coded = i - self.codebooks.first_coded
        if coded < 0:
            return parts
        given = [None] * len(parts) if self.given is None else _split(self.given[coded], self.codebooks.blocks[i])
        return tuple(
            self._see(book, part, codes, None if self.seeds is None else self.seeds[i, p])
            for p, (book, part, codes) in enumerate(zip(self.codebooks.blocks[i], parts, given, strict=True))
        )

    def _see(self, book: Quantiser, part: Tensor, given: Tensor | None, seeds: np.ndarray | None) -> Tensor:
        """(B, S, W) as others see it."""
        rows = (part.flatten(0, 1) if self.real is None else part[self.real]).float()  # (n, W)
        use = book.encode(rows, given)
        self.uses.append(use)
        if book.entries.requires_grad:
            approximation = book.decode(use.codes)
            self.commitment = self.commitment + (rows - approximation).square().sum()
        else:
            approximation = rows.detach() - use.rest
            self.commitment = self.commitment + (rows - approximation).square().sum()
        seen = approximation + (rows - rows.detach())
        if self.noise and seeds is not None:
            lengths = [part.shape[1]] * len(part) if self.real is None else self.real.sum(dim=1).tolist()
            seen = seen + self.noise * book.noise.draw(seeds, lengths)
        if self.real is None:
            return seen.view_as(part)
        return torch.zeros(part.shape, device=seen.device).index_put((self.real,), seen)
