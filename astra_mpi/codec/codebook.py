"""Vector quantisers: one codebook, the codebooks of one block, the codec of a model (arXiv 2505.19342, grouped VQ)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.codec.predictor import Predictor
from astra_mpi.config import KINDS, MAX_CODEBOOK_SIZE, CodecConfig, require
from astra_mpi.device.xp import beside, module_of

if TYPE_CHECKING:
    from astra_mpi.codec.kind import Kind


@dataclass(frozen=True, eq=False)
class Codebook:
    """One vector quantiser of D-vectors: C codes per vector, each the index of one of K entries.

    What a code stands for is the kind's to say (codec/kinds).
    With a basis (entries of full width), nearest means nearest after multiplication with it: in a subspace, in another
    metric, or both (docs/explanation/equations.md). Raises InputError on entries or a basis that do not fit.
    """

    kind: str  # one of KINDS
    entries: np.ndarray  # (C, K, W) float32
    width: int  # D, before padding
    basis: np.ndarray | None = None  # (D, d) float32
    error_growth: float = 0.0  # of the squared error on held-out vectors, relative to the codebook without a basis
    searched: np.ndarray = field(init=False, repr=False)  # (C, K, W or d) float32, entries as they are searched
    half_norms: np.ndarray = field(init=False, repr=False)  # (C, K) float32, ||searched entry||^2 / 2

    def __post_init__(self) -> None:
        entries = np.ascontiguousarray(self.entries, dtype=np.float32)
        require(self.kind in KINDS, f"codebook kind '{self.kind}' is unknown; use one of {', '.join(KINDS)}")
        require(
            entries.ndim == 3 and entries.size > 0,
            f"codebook entries have shape {entries.shape}; give a non-empty (codes, entries, width) array",
        )
        n_codes, size, width = entries.shape
        require(size <= MAX_CODEBOOK_SIZE, f"codebook has {size} entries; the limit is {MAX_CODEBOOK_SIZE}")
        needed = self.rule.entry_width(n_codes, self.width)
        require(
            width == needed,
            f"codebook entries are {width} wide; a {self.kind} codebook of {n_codes} codes for vectors of "
            f"{self.width} needs {needed}",
        )
        require(bool(np.isfinite(entries).all()), "codebook has NaN or infinite entries; calibrate it again")
        object.__setattr__(self, "entries", entries)
        self._check_basis()
        with np.errstate(over="ignore", invalid="ignore"):
            searched = entries if self.basis is None else entries @ self.basis
            half_norms = np.einsum("ckw,ckw->ck", searched, searched, dtype=np.float64) / 2
        require(
            bool((half_norms <= np.finfo(np.float32).max).all()), "codebook entries are too large; calibrate it again"
        )
        object.__setattr__(self, "searched", searched)
        object.__setattr__(self, "half_norms", half_norms.astype(np.float32))

    def _check_basis(self) -> None:
        if self.basis is None:
            return
        basis = np.ascontiguousarray(self.basis, dtype=np.float32)
        require(self.entries.shape[2] == self.width, "a codebook of several groups cannot be searched in a subspace")
        require(
            basis.ndim == 2 and basis.shape[0] == self.width and 1 <= basis.shape[1] <= self.width,
            f"a codebook's subspace has shape {basis.shape}, not ({self.width}, d) with d up to {self.width}; "
            "calibrate it again",
        )
        require(bool(np.isfinite(basis).all()), "a codebook's subspace has NaN or infinite values; calibrate it again")
        object.__setattr__(self, "basis", basis)

    @property
    def rule(self) -> type[Kind]:
        """What the codes stand for."""
        kind: type[Kind] = KINDS[self.kind]
        return kind

    @property
    def n_codes(self) -> int:
        """C: codes per vector (groups or stages)."""
        return self.entries.shape[0]

    @property
    def size(self) -> int:
        """K: entries per code."""
        return self.entries.shape[1]

    @property
    def narrow(self) -> bool:
        """Whether entries are searched in a subspace, not in all of the space."""
        return self.basis is not None and self.basis.shape[1] < self.width

    @property
    def mean(self) -> np.ndarray:
        """(D,) float32: the vector whose codes stand for unknown ones, the mean of the entries."""
        means = self.entries.mean(axis=1)  # (C, W)
        return self.rule.combine(means[:, None], self.width)[0]

    def encode(self, x: np.ndarray, kernels: Any) -> np.ndarray:
        """Codes (n, C), uint8 when K <= 256 else uint16, of x (n, D) float32 (rows may be strided).

        Each code is argmin_k ||e_k - t||^2, the lowest index on an exact tie; t is x, a part of it, or what the codes
        before it left.
        """
        if self.basis is not None:
            x = x @ beside(x, self.basis)  # (n, D) (D, d) -> (n, d)
        return self.rule.encode(x, self.searched, self.half_norms, kernels)

    def decode(self, codes: np.ndarray, kernels: Any) -> np.ndarray:
        """x^ (n, D) float32 of codes (n, C)."""
        return self.rule.decode(codes, self.entries, self.width, kernels)


def no_codebook(config: CodecConfig, width: int) -> Codebook:
    """Of a block that sends nothing."""
    shape = config.n_codebooks, config.codebook_size, config.rule.entry_width(config.n_codebooks, width)
    return Codebook(config.kind, np.zeros(shape, np.float32), width)


def pad(x: np.ndarray, n_groups: int) -> np.ndarray:
    """x (n, D) with zero columns added until `n_groups` divides the width; x itself if it does already."""
    missing = -x.shape[1] % n_groups
    return module_of(x).pad(x, ((0, 0), (0, missing))) if missing else x


@dataclass(frozen=True, eq=False)
class BlockCodec:
    """The codebooks of one block: one of the (normed) hidden state, or one of the keys and one of the values.

    A vector is the codebooks' vectors side by side, its codes are their codes side by side: for keys and values
    [K | V] (n, 2*d_kv), all K codes before all V codes.
    """

    codebooks: tuple[Codebook, ...]
    predictor: Predictor | None = None  # codes stand for what it misses; None: for the vector

    def __post_init__(self) -> None:
        require(len(self.codebooks) in (1, 2), f"a block has 1 or 2 codebooks, not {len(self.codebooks)}")
        shapes = {(book.kind, book.entries.shape, book.width) for book in self.codebooks}
        require(len(shapes) == 1, "the codebooks of a block's keys and values differ in kind or shape")
        widths = (self.width, self.predictor.width if self.predictor else self.width)
        require(len(set(widths)) == 1, f"a block's codebook and its predictor differ in width: {widths}")

    def with_books(self, codebooks: Iterable[Codebook]) -> BlockCodec:
        """The same with other codebooks."""
        return replace(self, codebooks=tuple(codebooks))

    @property
    def n_codes(self) -> int:
        """C: codes per token."""
        return sum(book.n_codes for book in self.codebooks)

    @property
    def size(self) -> int:
        """K: entries per code."""
        return self.codebooks[0].size

    @property
    def additive(self) -> bool:
        """Whether a vector is the sum of an entry per code."""
        return self.codebooks[0].rule.additive

    @property
    def width(self) -> int:
        """Width of what is quantised: D, or 2*d_kv for keys and values."""
        return sum(book.width for book in self.codebooks)

    def encode(self, x: np.ndarray, kernels: Any) -> np.ndarray:
        """Codes (n, C) of x (n, width)."""
        xp = module_of(x)
        parts = xp.split(x, len(self.codebooks), axis=1)
        codes = [book.encode(part, kernels) for book, part in zip(self.codebooks, parts, strict=True)]
        return codes[0] if len(codes) == 1 else xp.concatenate(codes, axis=1)

    def decode(self, codes: np.ndarray, kernels: Any) -> np.ndarray:
        """x^ (n, width) float32 of codes (n, C)."""
        xp = module_of(codes)
        parts = xp.split(codes, len(self.codebooks), axis=1)
        x = [book.decode(xp.ascontiguousarray(c), kernels) for book, c in zip(self.codebooks, parts, strict=True)]
        return x[0] if len(x) == 1 else xp.concatenate(x, axis=1)


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
        n_books = 2 if self.config.site == "kv" else 1
        for i, block in enumerate(self.blocks):
            require(
                len(block.codebooks) == n_books,
                f"codec block {i} has {len(block.codebooks)} codebooks; site '{self.config.site}' needs {n_books}",
            )
            for book in block.codebooks:
                found = (book.kind, book.n_codes, book.size)
                stated = (self.config.kind, self.config.n_codebooks, self.config.codebook_size)
                require(
                    found == stated, f"codec block {i} has (kind, codes, entries) {found}; its config says {stated}"
                )
            predicts, wanted = block.predictor is not None, self.config.predicts and i > 0
            require(
                predicts == wanted,
                f"codec block {i} has {'a' if predicts else 'no'} predictor; predict '{self.config.predict}' "
                f"needs {'one' if wanted else 'none'} there",
            )

    def exact(self) -> Codec:
        """The same codebooks without subspaces: searched by distance, also where these were of another metric."""
        blocks = [
            block.with_books(replace(b, basis=None, error_growth=0.0) if b.narrow else b for b in block.codebooks)
            for block in self.blocks
        ]
        return Codec(self.config, tuple(blocks))

    @cached_property
    def digest(self) -> str:
        """sha256 over the config, every entry, basis and predictor: what ranks compare before they exchange codes."""
        sha = hashlib.sha256(json.dumps(self.config.as_dict(), sort_keys=True).encode())
        for block in self.blocks:
            for book in block.codebooks:
                sha.update(repr((book.entries.shape, book.width)).encode())
                sha.update(book.entries.data)
                sha.update(b"" if book.basis is None else book.basis.data)
            for array in () if block.predictor is None else block.predictor.arrays:
                sha.update(repr(array.shape).encode())
                sha.update(array.data)
        return sha.hexdigest()
