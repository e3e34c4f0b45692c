"""What a block sends of its tokens: the codebooks of one block, its predictor, and the messages of their codes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from astra_mpi.codec.codebook import Codebook, Keep
from astra_mpi.codec.predictor import Predictor
from astra_mpi.config import require
from astra_mpi.device.xp import beside, module_of


@dataclass(frozen=True, eq=False)
class BlockCodec:
    """The codebooks of one block: one of the (normed) hidden state, or one of the keys and one of the values.

    A vector is the codebooks' vectors side by side, its codes are their codes side by side: for keys and values
    [K | V] (n, 2*d_kv), all K codes before all V codes.
    """

    codebooks: tuple[Codebook, ...]
    predictor: Predictor | None = None  # to the vector: codes stand for what it misses, unless it is from earlier codes

    def __post_init__(self) -> None:
        require(len(self.codebooks) in (1, 2), f"a block has 1 or 2 codebooks, not {len(self.codebooks)}")
        shapes = {(book.kind, book.width) for book in self.codebooks}
        require(len(shapes) == 1, "the codebooks of a block's keys and values differ in kind or width")
        widths = (self.width, self.predictor.width if self.predictor else self.width)
        require(len(set(widths)) == 1, f"a block's codebook and its predictor differ in width: {widths}")

    def with_books(self, codebooks: Iterable[Codebook]) -> BlockCodec:
        """The same with other codebooks."""
        return replace(self, codebooks=tuple(codebooks))

    def kept(self, keep: Keep) -> BlockCodec:
        """The same with the numbers of its codebooks where `keep` puts them."""
        return self.with_books(book.kept(keep) for book in self.codebooks)

    @cached_property
    def n_codes(self) -> int:
        """C: codes per token."""
        return sum(book.n_codes for book in self.codebooks)

    @cached_property
    def size(self) -> int:
        """K: entries per code, the most of any."""
        return max(book.size for book in self.codebooks)

    @cached_property
    def code_bits(self) -> np.ndarray:
        """(C,) int64: bits of each code on the wire."""
        return np.concatenate([book.code_bits for book in self.codebooks])

    @cached_property
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
        """Codes (n, C) of x (n, width).

        near (n,), bool on the host: which tokens have all codes, where others have fewer; None: all.
        """
        xp = module_of(x)
        parts = [x] if len(self.codebooks) == 1 else xp.split(x, len(self.codebooks), axis=1)
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
            parts = [codes[rows, columns].reshape(-1) for rows, columns in self._grades(codes, near)]
            return kernels.pack(module_of(codes).concatenate(parts)[:, None], bits)
        codes = codes if sent is None else codes[:, beside(codes, sent)]
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
        every[:, beside(every, sent)] = codes
        return every

    def _unpack_graded(self, message: np.ndarray, near: np.ndarray, kernels: Any) -> np.ndarray:
        bits, _ = self._wire
        assert isinstance(bits, int)
        some, every, silent = self._columns
        n_first, n_last = int((~near).sum()) * len(some), int(near.sum()) * len(every)
        flat = kernels.unpack(message, n_first + n_last, 1, bits)[:, 0]
        codes = module_of(flat).full((len(near), self.n_codes), self.size - 1, flat.dtype)
        codes[:, beside(codes, silent)] = 0
        for (rows, columns), part in zip(self._grades(codes, near), (flat[:n_first], flat[n_first:]), strict=True):
            codes[rows, columns] = part.reshape(len(rows), columns.shape[1])
        return codes

    def _grades(self, codes: Any, near: np.ndarray) -> list[tuple[Any, Any]]:
        """Where the codes that travel lie in codes (n, C): rows (m, 1) and columns (1, c), of ordinary tokens first."""
        xp, (some, every, _) = module_of(codes), self._columns
        pairs = (~near, some), (near, every)
        return [(xp.asarray(np.flatnonzero(rows))[:, None], beside(codes, columns)[None]) for rows, columns in pairs]

    @cached_property
    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of graded codes: those that travel of an ordinary token, and of a near one; those that never do."""
        assert self.ordinary is not None
        sent = np.flatnonzero(self.code_bits)
        return np.intersect1d(self.ordinary, sent), sent, np.flatnonzero(self.code_bits == 0)

    @cached_property
    def _wire(self) -> tuple[int | np.ndarray, np.ndarray | None]:
        """(bits of every code that is sent, one number if they are alike; which are sent, None: all)."""
        sent = np.flatnonzero(self.code_bits)
        bits = self.code_bits[sent]
        alike = len(set(bits.tolist())) <= 1
        return int(bits.max(initial=0)) if alike else bits, None if len(sent) == self.n_codes else sent

    def misfit(self, codes: Any) -> Any:
        """Of codes (n, C), (n,) whether some code is not one of an entry; None where every message has good codes."""
        if not any(self._can_misfit):
            return None
        parts = zip(self.codebooks, self.split(codes), self._can_misfit, strict=True)
        bad = [part >= book.size for book, part, can in parts if can]
        return module_of(codes).concatenate(bad, axis=1).any(axis=1)

    @cached_property
    def _can_misfit(self) -> list[bool]:
        """Of each codebook, whether its codes can say more than it has entries."""
        return [book.size < 1 << int(book.code_bits.max()) for book in self.codebooks]

    def clipped(self, codes: Any) -> Any:
        """Codes (n, C) of which none is above the last entry."""
        parts = zip(self.codebooks, self.split(codes), strict=True)
        xp = module_of(codes)
        return xp.concatenate([xp.minimum(part, codes.dtype.type(book.size - 1)) for book, part in parts], axis=1)
