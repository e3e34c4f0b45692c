"""Groups: the vector is cut into sub-vectors, each with entries of its own (arXiv 2505.19342)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.codec.codebook import Codebook, pad
from astra_mpi.codec.kind import Kind, Progress, Sigma2
from astra_mpi.codec.kmeans import kmeans
from astra_mpi.codec.tables import GroupSums
from astra_mpi.device.xp import module_of

if TYPE_CHECKING:
    from astra_mpi.codec.config import CodecConfig


class Grouped(Kind):
    """The vector, zero-padded to C*W, is C sub-vectors of W = ceil(D / C); x^ is their entries side by side."""

    name = "grouped"
    count = "groups"
    letter = "G"
    published = True

    @classmethod
    def n_codes(cls, config: CodecConfig) -> int:
        return config.groups

    @classmethod
    def entry_width(cls, n_codes: int, width: int) -> int:
        return -(-width // n_codes)

    @classmethod
    def full_width(cls, config: CodecConfig) -> bool:
        return config.groups == 1

    @classmethod
    def layers(cls, config: CodecConfig) -> int:
        return 1

    @classmethod
    def encode(cls, x: np.ndarray, searched: np.ndarray, half_norms: np.ndarray, kernels: Any) -> np.ndarray:
        return kernels.encode_grouped(pad(x, len(searched)), searched, half_norms)

    @classmethod
    def decode(cls, codes: np.ndarray, entries: np.ndarray, width: int, kernels: Any) -> np.ndarray:
        x = kernels.decode_grouped(codes, entries)  # (n, C*W)
        return module_of(x).ascontiguousarray(x[:, :width])

    @classmethod
    def target(cls, c: int, x: Any, last: Any, row: Any, entry_width: int) -> Any:
        first, width = c * entry_width, x.shape[1]
        if first + entry_width <= width:
            return x[:, first : first + entry_width]
        part = x[:, [min(i, width - 1) for i in range(first, first + entry_width)]]  # a copy
        part[:, max(0, width - first) :] = 0
        return part

    @classmethod
    def combine(cls, rows: Any, width: int) -> Any:
        return rows.swapaxes(0, 1).reshape(rows.shape[1], -1)[:, :width]

    @classmethod
    def fit(
        cls, x: np.ndarray, config: CodecConfig, rng: np.random.Generator, kernels: Any, report: Progress
    ) -> Codebook:
        groups = np.split(pad(x, config.groups), config.groups, axis=1)  # G of (n, W)
        entries = []
        for group in groups:
            entries.append(kmeans(group, config.codebook_size, rng, kernels))
            report(len(entries), config.groups)
        return Codebook(cls.name, np.stack(entries), x.shape[1])

    @classmethod
    def span(cls, c: int, entry_width: int) -> slice:
        return slice(c * entry_width, (c + 1) * entry_width)

    @classmethod
    def sigma2(cls, book: Codebook, centred: bool) -> Sigma2:
        return GroupSums(book, centred)

    @classmethod
    def cut(cls, u: np.ndarray, book: Codebook) -> np.ndarray:
        n_codes, _, width = book.entries.shape
        return pad(u, n_codes).reshape(len(u), n_codes, width).transpose(1, 2, 0)
