"""The codec of a model: how the activations of all its blocks become codes (arXiv 2505.19342, grouped VQ)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Keep
from astra_mpi.codec.config import CodecConfig
from astra_mpi.config import require


@dataclass(frozen=True, eq=False)
class Codec:
    """How a model's activations become codes, block by block. Raises InputError if a block contradicts the config.

    `config.encoder` becomes what the codebooks are: "subspace" if any has a narrow basis, else "exact".
    """

    config: CodecConfig
    blocks: tuple[BlockCodec, ...]

    def __post_init__(self) -> None:
        books = [book for block in self.blocks for book in block.codebooks]
        encoder = "subspace" if any(book.narrow for book in books) else "exact"
        object.__setattr__(self, "config", replace(self.config, encoder=encoder))
        n_books = self.config.n_books
        self.config.check_blocks(len(self.blocks), "codec")
        for i, block in enumerate(self.blocks):
            require(
                len(block.codebooks) == n_books,
                f"codec block {i} has {len(block.codebooks)} codebooks; site '{self.config.site}' needs {n_books}",
            )
            for book, part in zip(block.codebooks, self.config.of(i), strict=True):
                found = (book.kind, book.n_codes, book.size)
                stated = (part.kind, part.n_codebooks, part.codebook_size)
                silent = self.config.has_maps and i == 0
                require(
                    silent or (book.kind == part.kind and part.rule.fits(part, book)),
                    f"codec block {i} has (kind, codes, entries) {found}; its config says {stated}",
                )
            predicts, wanted = block.predictor is not None, self.config.has_maps and i > 0
            require(
                predicts == wanted,
                f"codec block {i} has {'a' if predicts else 'no'} predictor; predict '{self.config.predict}' "
                f"needs {'one' if wanted else 'none'} there",
            )
            n_inputs = self.config.inputs if block.predictor is None else block.predictor.n_inputs
            require(
                n_inputs == self.config.inputs,
                f"codec block {i} predicts from {n_inputs} inputs; its config says {self.config.inputs}",
            )

    @property
    def block_bits(self) -> list[int]:
        """Bits that an ordinary token costs in each block; `config.mean_bits` is their mean."""
        silent = int(self.config.has_maps)
        return [0] * silent + [block.ordinary_bits for block in self.blocks[silent:]]

    def exact(self) -> Codec:
        """The same codebooks without subspaces: searched by distance, also where these were of another metric."""
        blocks = [
            block.with_books(replace(b, basis=None, error_growth=0.0) if b.narrow else b for b in block.codebooks)
            for block in self.blocks
        ]
        return Codec(self.config, tuple(blocks))

    def kept(self, keep: Keep) -> Codec:
        """The same with the numbers of all codebooks where `keep` puts them."""
        return Codec(self.config, tuple(block.kept(keep) for block in self.blocks))

    def make_ready(self, keep: Keep, kernels: Any) -> None:
        """What searches of all codebooks make of them, now, to where `keep` puts it."""
        for block in self.blocks:
            for book in block.codebooks:
                book.make_ready(keep, kernels)

    @property
    def kept_bytes(self) -> int:
        """What these two take at most."""
        return sum(book.kept_bytes for block in self.blocks for book in block.codebooks)

    @cached_property
    def digest(self) -> str:
        """sha256 over the config, every entry, basis and predictor: what ranks compare before they exchange codes."""
        sha = hashlib.sha256(json.dumps(self.config.as_dict(), sort_keys=True).encode())
        for block in self.blocks:
            for book in block.codebooks:
                sha.update(repr((book.entries.shape, book.width)).encode())
                sha.update(book.entries.data)
                sha.update(b"" if book.basis is None else book.basis.data)
                for array in (*(book.transform or ()), *(() if book.bits is None else (book.bits,))):
                    sha.update(array.data)
                sha.update(b"" if book.head is None else book.head.entries.data)
            for array in () if block.predictor is None else block.predictor.arrays:
                sha.update(repr(array.shape).encode())
                sha.update(array.data)
        return sha.hexdigest()
