"""Vector quantisers: one codebook, the codebooks of one block, the codec of a model (arXiv 2505.19342, grouped VQ)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from astra_mpi.codec.predictor import Predictor
from astra_mpi.config import KINDS, MAX_CODEBOOK_SIZE, CodecConfig, require
from astra_mpi.device.xp import beside, module_of

if TYPE_CHECKING:
    from astra_mpi.codec.kind import Kind


class Transform(NamedTuple):
    """Coordinates that are quantised in place of the vector: z = (x - offset) forward, x^ = z^ back + offset."""

    forward: np.ndarray  # (D, C) float32
    back: np.ndarray  # (C, D) float32
    offset: np.ndarray  # (D,) float32: the mean of the vectors


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
    transform: Transform | None = None
    bits: np.ndarray | None = None  # (C,) uint8 of each code, where they differ
    head: Codebook | None = None  # the first codes; the others are of what it leaves over
    ordinary: int | None = None  # codes of tokens that are not near another slice, whose others are the last, 0
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
        self._check_transform(n_codes, size)
        good = self.head is None or (self.head.width == self.width and self.head.head is None)
        require(good, "a codebook's first codes are of vectors of another width; calibrate it again")
        silent = self.ordinary is None or not entries[self.ordinary :, -1].any()
        require(silent, "a codebook's stages of near tokens have no entry that adds nothing; calibrate it again")
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

    def _check_transform(self, n_codes: int, size: int) -> None:
        if self.bits is not None:
            object.__setattr__(self, "bits", np.ascontiguousarray(self.bits, np.uint8))
            fits = self.bits.shape == (n_codes,) and int(1 << self.bits.max()) <= max(size, 1)
            require(fits, f"a codebook of {n_codes} codes with {size} entries has other bits; calibrate again")
        if self.transform is None:
            return
        arrays = [np.ascontiguousarray(array, np.float32) for array in self.transform]
        shapes = [array.shape for array in arrays]
        good = shapes == [(self.width, n_codes), (n_codes, self.width), (self.width,)]
        require(
            good, f"a codebook's transform has shapes {shapes} for {n_codes} codes of {self.width}; calibrate again"
        )
        finite = all(bool(np.isfinite(array).all()) for array in arrays)
        require(finite, "a codebook's transform has NaN or infinite values; calibrate it again")
        object.__setattr__(self, "transform", Transform(*arrays))

    @cached_property
    def code_bits(self) -> np.ndarray:
        """(C,) int64: bits of each code on the wire."""
        uniform = np.full(len(self.entries), (self.entries.shape[1] - 1).bit_length(), np.int64)
        own = uniform if self.bits is None else self.bits.astype(np.int64)
        return own if self.head is None else np.concatenate([self.head.code_bits, own])

    @property
    def rule(self) -> type[Kind]:
        """What the codes stand for."""
        kind: type[Kind] = KINDS[self.kind]
        return kind

    @property
    def n_codes(self) -> int:
        """C: codes per vector (groups or stages)."""
        return self.entries.shape[0] + (self.head.n_codes if self.head else 0)

    @property
    def size(self) -> int:
        """K: entries per code, the most of any."""
        return max(self.entries.shape[1], self.head.size if self.head else 1)

    @property
    def narrow(self) -> bool:
        """Whether entries are searched in a subspace, not in all of the space."""
        return self.basis is not None and self.basis.shape[1] < self.width

    @property
    def mean(self) -> np.ndarray:
        """(D,) float32: the vector whose codes stand for unknown ones, the mean of the entries."""
        if self.transform is not None:
            return self.transform.offset if self.head is None else self.transform.offset + self.head.mean
        means = self.entries.mean(axis=1)  # (C, W)
        return self.rule.combine(means[:, None], self.width)[0]

    def encode(self, x: np.ndarray, kernels: Any) -> np.ndarray:
        """Codes (n, C), uint8 when K <= 256 else uint16, of x (n, D) float32 (rows may be strided).

        Each code is argmin_k ||e_k - t||^2, the lowest index on an exact tie; t is x, a part of it, or what the codes
        before it left.
        """
        if self.head is not None:
            first = self.head.encode(x, kernels)
            rest = self._encode(x - self.head.decode(first, kernels), kernels)
            return module_of(x).concatenate([first, rest], axis=1)
        return self._encode(x, kernels)

    def graded(self, x: np.ndarray, near: np.ndarray, kernels: Any) -> np.ndarray:
        """Codes (n, C) of x (n, D) where only tokens that are near (n,) have more codes than the ordinary ones."""
        if self.ordinary is None:
            return self.encode(x, kernels)
        basis = None if self.basis is None else beside(x, self.basis)
        sought = x if basis is None else x @ basis
        first = slice(self.ordinary)
        some = self.rule.encode(sought, self.searched[first], self.half_norms[first], kernels)
        codes = module_of(x).full((len(x), self.n_codes), self.size - 1, some.dtype)
        codes[:, first] = some
        codes[near] = self.rule.encode(sought[near], self.searched, self.half_norms, kernels)
        return codes

    def _encode(self, x: np.ndarray, kernels: Any) -> np.ndarray:
        """Codes but those of the head."""
        if self.transform is not None:
            x = (x - beside(x, self.transform.offset)) @ beside(x, self.transform.forward)  # (n, D) -> (n, C)
        if self.basis is not None:
            x = x @ beside(x, self.basis)  # (n, D) (D, d) -> (n, d)
        return self.rule.encode(x, self.searched, self.half_norms, kernels)

    def decode(self, codes: np.ndarray, kernels: Any) -> np.ndarray:
        """x^ (n, D) float32 of codes (n, C)."""
        if self.transform is None:
            return self.rule.decode(codes, self.entries, self.width, kernels)
        first = 0 if self.head is None else self.head.n_codes
        own = module_of(codes).ascontiguousarray(codes[:, first:])
        z = self.rule.decode(own, self.entries, len(self.entries), kernels)  # (n, C)
        back, offset = (beside(z, array) for array in self.transform[1:])
        x = kernels.ordered_product(z, back, module_of(z).empty((len(z), self.width), z.dtype))
        x += offset
        return x if self.head is None else self.head.decode(codes[:, :first], kernels) + x


def no_codebook(config: CodecConfig, width: int) -> Codebook:
    """Of a block that sends nothing."""
    if config.rule.transforms:
        nothing = Transform(
            np.zeros((width, 1), np.float32), np.zeros((1, width), np.float32), np.zeros(width, np.float32)
        )
        return Codebook(config.kind, np.zeros((1, 1, 1), np.float32), width, transform=nothing, bits=np.zeros(1))
    (config,) = config.of(0)
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
        shapes = {(book.kind, book.width) for book in self.codebooks}
        require(len(shapes) == 1, "the codebooks of a block's keys and values differ in kind or width")
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
        """K: entries per code, the most of any."""
        return max(book.size for book in self.codebooks)

    @cached_property
    def code_bits(self) -> np.ndarray:
        """(C,) int64: bits of each code on the wire."""
        return np.concatenate([book.code_bits for book in self.codebooks])

    @property
    def bits_per_token(self) -> int:
        """Of all codes of a token."""
        return int(self.code_bits.sum())

    @property
    def additive(self) -> bool:
        """Whether a vector is the sum of an entry per code."""
        return self.codebooks[0].rule.additive

    @property
    def width(self) -> int:
        """Width of what is quantised: D, or 2*d_kv for keys and values."""
        return sum(book.width for book in self.codebooks)

    def encode(self, x: np.ndarray, kernels: Any, near: np.ndarray | None = None) -> np.ndarray:
        """Codes (n, C) of x (n, width). near (n,): which tokens have all codes, where others have fewer; None: all."""
        xp = module_of(x)
        parts = xp.split(x, len(self.codebooks), axis=1)
        codes = [
            book.encode(part, kernels) if near is None else book.graded(part, near, kernels)
            for book, part in zip(self.codebooks, parts, strict=True)
        ]
        return codes[0] if len(codes) == 1 else xp.concatenate(codes, axis=1)

    def decode(self, codes: np.ndarray, kernels: Any) -> np.ndarray:
        """x^ (n, width) float32 of codes (n, C)."""
        xp = module_of(codes)
        parts = self.split(codes)
        x = [book.decode(xp.ascontiguousarray(c), kernels) for book, c in zip(self.codebooks, parts, strict=True)]
        return x[0] if len(x) == 1 else xp.concatenate(x, axis=1)

    def split(self, codes: Any) -> list[Any]:
        """Codes (n, C), or anything with a column per code, -> those of each codebook."""
        ends = [0, *accumulate(book.n_codes for book in self.codebooks)]
        return [codes[..., a:b] for a, b in pairwise(ends)]

    @cached_property
    def ordinary(self) -> np.ndarray | None:
        """The codes that all tokens have; None: no token has fewer than another."""
        if all(book.ordinary is None for book in self.codebooks):
            return None
        counts = [(book.n_codes, book.n_codes if book.ordinary is None else book.ordinary) for book in self.codebooks]
        return np.flatnonzero(np.concatenate([np.arange(n) < some for n, some in counts]))

    @property
    def ordinary_bits(self) -> int:
        """Bits of a token that has no more codes than all have."""
        return self.bits_per_token if self.ordinary is None else int(self.code_bits[self.ordinary].sum())

    def message_bytes(self, n: int, n_near: int | None = None) -> int:
        """Of the codes of n tokens, n_near of which have all of them; None: all."""
        near = n if n_near is None or self.ordinary is None else n_near
        return -(-(near * self.bits_per_token + (n - near) * self.ordinary_bits) // 8)

    def pack(self, codes: np.ndarray, kernels: Any, near: np.ndarray | None = None) -> np.ndarray:
        """Message uint8 (message_bytes,) of codes (n, C), token after token; codes of 0 bits are left out.

        near (n,): which have all codes. The ordinary ones then come first, for all codes are of the same bits.
        """
        bits, sent = self._wire
        if near is not None and self.ordinary is not None:
            xp = module_of(codes)
            columns = self.ordinary if sent is None else np.intersect1d(self.ordinary, sent)
            every = codes if sent is None else codes[:, sent]
            flat = xp.concatenate([codes[~near][:, columns].reshape(-1), every[near].reshape(-1)])
            return kernels.pack(flat[:, None], bits)
        codes = codes if sent is None else codes[:, sent]
        return kernels.pack(codes, bits) if isinstance(bits, int) else kernels.pack_columns(codes, bits)

    def unpack(self, message: np.ndarray, n: int, kernels: Any, near: np.ndarray | None = None) -> np.ndarray:
        """The codes (n, C) again. ValueError if the message has another length."""
        bits, sent = self._wire
        if near is not None and self.ordinary is not None:
            return self._unpack_graded(message, near, kernels)
        if isinstance(bits, int):
            codes = kernels.unpack(message, n, self.n_codes if sent is None else len(sent), bits)
        else:
            codes = kernels.unpack_columns(message, n, bits)
        if sent is None:
            return codes
        every = module_of(codes).zeros((n, self.n_codes), codes.dtype)
        every[:, sent] = codes
        return every

    def _unpack_graded(self, message: np.ndarray, near: np.ndarray, kernels: Any) -> np.ndarray:
        bits, sent = self._wire
        assert isinstance(bits, int) and self.ordinary is not None
        every = np.arange(self.n_codes) if sent is None else sent
        columns, n_near = np.intersect1d(self.ordinary, every), int(near.sum())
        n_first = (len(near) - n_near) * len(columns)
        flat = kernels.unpack(message, n_first + n_near * len(every), 1, bits)[:, 0]
        xp = module_of(flat)
        codes = xp.full((len(near), self.n_codes), self.size - 1, flat.dtype)
        if sent is not None:
            codes[:, np.setdiff1d(np.arange(self.n_codes), sent)] = 0
        some, all_of_them = xp.flatnonzero(~near), xp.flatnonzero(near)
        codes[some[:, None], xp.asarray(columns)[None]] = flat[:n_first].reshape(-1, len(columns))
        codes[all_of_them[:, None], xp.asarray(every)[None]] = flat[n_first:].reshape(-1, len(every))
        return codes

    @cached_property
    def _wire(self) -> tuple[int | np.ndarray, np.ndarray | None]:
        """(bits of every code that is sent, one number if they are alike; which are sent, None: all)."""
        sent = np.flatnonzero(self.code_bits)
        bits = self.code_bits[sent]
        alike = len(set(bits.tolist())) <= 1
        return int(bits.max(initial=0)) if alike else bits, None if len(sent) == self.n_codes else sent

    def misfit(self, codes: Any) -> Any:
        """Of codes (n, C), (n,) whether some code is not one of an entry; None where every message has good codes."""
        parts = zip(self.codebooks, self.split(codes), strict=True)
        bad = [part >= book.size for book, part in parts if book.size < 1 << int(book.code_bits.max())]
        return None if not bad else module_of(codes).concatenate(bad, axis=1).any(axis=1)

    def clipped(self, codes: Any) -> Any:
        """Codes (n, C) of which none is above the last entry."""
        parts = zip(self.codebooks, self.split(codes), strict=True)
        xp = module_of(codes)
        return xp.concatenate([xp.minimum(part, codes.dtype.type(book.size - 1)) for book, part in parts], axis=1)


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
                silent = self.config.predicts and i == 0
                require(
                    silent or (book.kind == part.kind and part.rule.fits(part, book)),
                    f"codec block {i} has (kind, codes, entries) {found}; its config says {stated}",
                )
            predicts, wanted = block.predictor is not None, self.config.predicts and i > 0
            require(
                predicts == wanted,
                f"codec block {i} has {'a' if predicts else 'no'} predictor; predict '{self.config.predict}' "
                f"needs {'one' if wanted else 'none'} there",
            )

    def bits_per_token(self, i: int) -> int:
        """Bits that a token costs in block i; `config.bits_per_token` is their mean."""
        return self.blocks[i].bits_per_token

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
                for array in (*(book.transform or ()), *(() if book.bits is None else (book.bits,))):
                    sha.update(array.data)
                sha.update(b"" if book.head is None else book.head.entries.data)
            for array in () if block.predictor is None else block.predictor.arrays:
                sha.update(repr(array.shape).encode())
                sha.update(array.data)
        return sha.hexdigest()
