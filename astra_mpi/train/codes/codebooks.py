"""The codebooks and predictors of all blocks under training."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.train.codes.predictor import Expecting
from astra_mpi.train.codes.quantiser import Quantiser
from astra_mpi.train.codes.scalar import Scalars


class Learned(NamedTuple):
    """Numbers with gradients."""

    name: str
    tensor: Tensor
    scale: float  # how far apart what it says of different vectors is: rates are relative to it
    predicts: bool


class Codebooks:
    """What blocks before `first_coded` have is not used and does not learn. late: codes come one block late."""

    def __init__(
        self,
        codec: Codec,
        learns: bool,
        device: torch.device | str = "cpu",
        first: str = "codes",
        late: bool = False,
    ) -> None:
        self.config = codec.config
        self.predicts = codec.config.predicts
        self.late = late
        self.first_coded = int(first == "inputs" or self.predicts)
        quantiser = Scalars if codec.config.rule.transforms else Quantiser
        self.blocks: list[list[Quantiser | Scalars]] = [
            [quantiser(book, learns and i >= self.first_coded, device) for book in block.codebooks]
            for i, block in enumerate(codec.blocks)
        ]
        self.predictors = [
            None if block.predictor is None else Expecting(block.predictor, learns, device) for block in codec.blocks
        ]

    @property
    def all(self) -> list[Quantiser | Scalars]:
        return [book for block in self.blocks for book in block]

    @property
    def used(self) -> list[Quantiser | Scalars]:
        return [book for block in self.blocks[self.first_coded :] for book in block]

    @property
    def learned(self) -> list[Learned]:
        """All that has gradients, block by block."""
        found = []
        for i, book in enumerate(self.all):
            found += [
                Learned(f"codebooks.{i}.{name}", tensor, spread(tensor), False) for name, tensor in book.learned.items()
            ]
        for i, predictor in enumerate(self.predictors):
            named = predictor.learned if predictor else {}
            found += [Learned(f"predictors.{i}.{name}", tensor, size(tensor), True) for name, tensor in named.items()]
        return found

    def settle(self) -> None:
        """After a step of an optimiser."""
        for book in self.used:
            if isinstance(book, Scalars):
                book.settle()

    @property
    def codec(self) -> Codec:
        blocks = [
            BlockCodec(tuple(q.book for q in block), None if predictor is None else predictor.predictor)
            for block, predictor in zip(self.blocks, self.predictors, strict=True)
        ]
        return Codec(self.config, tuple(blocks))

    def state(self) -> dict[str, Tensor]:
        state = {f"codebooks.{i}.{name}": t for i, q in enumerate(self.all) for name, t in q.state().items()}
        for i, predictor in enumerate(self.predictors):
            state |= {f"predictors.{i}.{name}": t for name, t in (predictor.state() if predictor else {}).items()}
        return state

    @staticmethod
    def codec_of(state: dict[str, Tensor], config: CodecConfig, width: int) -> Codec:
        """The codec whose `state` this is, of codebooks that began as k-means."""
        n_books = sum(name.startswith("codebooks.") and name.endswith(".entries") for name in state)
        books = []
        for i in range(n_books):
            entries, basis = (state.get(f"codebooks.{i}.{name}") for name in ("entries", "basis"))
            assert entries is not None
            books.append(Codebook(config.kind, entries.numpy(), width, None if basis is None else basis.numpy()))
        parts = config.n_books
        return Codec(config, tuple(BlockCodec(tuple(books[i : i + parts])) for i in range(0, n_books, parts)))


def split(codes: Tensor, books: list[Quantiser | Scalars]) -> list[Tensor]:
    """Codes (n, C) -> those of each codebook."""
    ends = [0, *accumulate(book.n_codes for book in books)]
    return [codes[:, a:b] for a, b in pairwise(ends)]


def spread(entries: Tensor) -> float:
    """Root mean square of the last code's entries about their mean: how far apart what codebooks (C, K, W) tell is.

    Of other arrays, of all numbers.
    """
    if entries.ndim < 3 or entries.shape[1] == 1:
        return size(entries)
    last = entries.detach()[-1]
    return max(float((last - last.mean(dim=0)).square().mean().sqrt()), 1e-6)


def size(numbers: Tensor) -> float:
    """Root mean square."""
    return max(float(numbers.detach().square().mean().sqrt()), 1e-6)
