"""One vector quantiser (arXiv 2505.19342, grouped VQ)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from astra_mpi.codec.config import KINDS, MAX_CODEBOOK_SIZE, CodecConfig
from astra_mpi.config import require
from astra_mpi.device.xp import beside, module_of
from astra_mpi.kernels.integers import Integers, integers

if TYPE_CHECKING:
    from astra_mpi.codec.kind import Kind

#: an array -> a copy of it elsewhere, which nobody writes to
Keep = Callable[[np.ndarray], np.ndarray]


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

    def kept(self, keep: Keep) -> Codebook:
        """The same with its numbers where `keep` puts arrays."""
        made = object.__new__(Codebook)
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        own["entries"], own["half_norms"] = keep(self.entries), keep(self.half_norms)
        own["searched"] = own["entries"] if self.searched is self.entries else keep(self.searched)
        own["basis"] = None if self.basis is None else keep(self.basis)
        own["transform"] = None if self.transform is None else Transform(*map(keep, self.transform))
        own["head"] = None if self.head is None else self.head.kept(keep)
        for name, value in own.items():
            object.__setattr__(made, name, value)
        return made

    def make_ready(self, keep: Keep, kernels: Any) -> None:
        """What searches make of the entries, which the first one would otherwise do, to where `keep` puts arrays."""
        if self.head is not None:
            self.head.make_ready(keep, kernels)
        if self.transform is None and self.code_bits.any() and hasattr(kernels, "make_ready_to_search"):
            for searched in [self.searched] + [self._ordinary_book[0]] * (self.ordinary is not None):
                kernels.make_ready_to_search(searched, keep)

    @property
    def kept_bytes(self) -> int:
        """What `kept` and `make_ready` take at most: entries, as they are and as they are searched, and packed."""
        others = [array for array in (self.basis, *(self.transform or ())) if array is not None]
        own = 4 * self.entries.nbytes + sum(array.nbytes for array in others)
        return own + (0 if self.head is None else self.head.kept_bytes)

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
        """Codes (n, C) of x (n, D) where only tokens that are near (n,), bool on the host, have more codes than the
        ordinary ones."""
        if self.ordinary is None:
            return self.encode(x, kernels)
        sought = x if self.basis is None else in_space(x, beside(x, self.basis), kernels)
        some = self.rule.encode(sought, *self._ordinary_book, kernels)
        codes = module_of(x).full((len(x), self.n_codes), self.size - 1, some.dtype)
        codes[:, : self.ordinary] = some
        rows = module_of(x).asarray(np.flatnonzero(near))
        codes[rows] = self.rule.encode(sought[rows], self.searched, self.half_norms, kernels)
        return codes

    @cached_property
    def _ordinary_book(self) -> tuple[np.ndarray, np.ndarray]:
        """What `encode` of the kind takes for the codes that all tokens have."""
        return self.searched[: self.ordinary], self.half_norms[: self.ordinary]

    def _encode(self, x: np.ndarray, kernels: Any) -> np.ndarray:
        """Codes but those of the head."""
        if self.transform is not None:
            x = (x - beside(x, self.transform.offset)) @ beside(x, self.transform.forward)  # (n, D) -> (n, C)
        if self.basis is not None:
            x = in_space(x, beside(x, self.basis), kernels)
        return self.rule.encode(x, self.searched, self.half_norms, kernels)

    @cached_property
    def _back(self) -> Integers:
        """The way back from coordinates, as it is multiplied: the same on every rank."""
        assert self.transform is not None
        return integers(self.transform.back)

    def decode(self, codes: np.ndarray, kernels: Any) -> np.ndarray:
        """x^ (n, D) float32 of codes (n, C)."""
        if self.transform is None:
            return self.rule.decode(codes, self.entries, self.width, kernels)
        first = 0 if self.head is None else self.head.n_codes
        own = module_of(codes).ascontiguousarray(codes[:, first:])
        z = self.rule.decode(own, self.entries, len(self.entries), kernels)  # (n, C)
        x: np.ndarray = kernels.integer_product([z], self._back, module_of(z).empty((len(z), self.width), z.dtype))
        x += beside(z, self.transform.offset)
        return x if self.head is None else self.head.decode(codes[:, :first], kernels) + x


def in_space(x: np.ndarray, basis: np.ndarray, kernels: Any) -> np.ndarray:
    """x (n, D) in the space where entries are searched, (n, d), a new array."""
    if not hasattr(kernels, "dense"):
        return x @ basis
    searched: np.ndarray = kernels.dense(x, basis, np.empty((len(x), basis.shape[1]), x.dtype))
    return searched


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
