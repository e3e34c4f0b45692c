"""Scalar codes: every coordinate by itself, along the principal directions, with the bits that it is worth.

Bits go where another one lowers the squared error most (reverse water-filling, on the samples); directions that get
none are left out. Levels are those of least squared error (Lloyd, Max). Nothing is searched: a vector costs a product
with the directions, and another one back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.codec.codebook import Codebook, Transform
from astra_mpi.codec.kind import Kind, Progress
from astra_mpi.codec.levels import spread
from astra_mpi.codec.subspace import principal_directions
from astra_mpi.config import require

if TYPE_CHECKING:
    from astra_mpi.config import CodecConfig

SAMPLES = 1 << 14  # that levels are fitted to, at most: a direction has 256 at most


class Scalar(Kind):
    """x^ = offset + the levels of its codes times their directions."""

    name = "scalar"
    count = "vector_bits"
    letter = "bits"
    additive = False  # it is a sum, but tables of projected entries would be as large as all levels of all directions
    trains = False
    transforms = True

    @classmethod
    def n_codes(cls, config: CodecConfig) -> int:
        return max(config.count, 1)  # at most: a bit for each

    @classmethod
    def vector_bits(cls, config: CodecConfig) -> int:
        return config.count

    @classmethod
    def fits(cls, config: CodecConfig, book: Codebook) -> bool:
        spent = -1 if book.bits is None or book.transform is None else int(book.bits.sum())
        return spent == config.count and book.size <= config.codebook_size

    @classmethod
    def shape(cls, config: CodecConfig, width: int) -> tuple[int, int, int]:
        return -1, -1, 1

    @classmethod
    def entry_width(cls, n_codes: int, width: int) -> int:
        return 1

    @classmethod
    def layers(cls, config: CodecConfig) -> int:
        return -(-cls.n_codes(config) // 2)  # directions, at about two bits each

    @classmethod
    def encode(cls, x: np.ndarray, searched: np.ndarray, half_norms: np.ndarray, kernels: Any) -> np.ndarray:
        return kernels.encode_levels(x, searched[:, :, 0])

    @classmethod
    def decode(cls, codes: np.ndarray, entries: np.ndarray, width: int, kernels: Any) -> np.ndarray:
        return kernels.decode_grouped(codes, entries)

    @classmethod
    def target(cls, c: int, x: Any, last: Any, row: Any, entry_width: int) -> Any:
        return x[:, c : c + 1]

    @classmethod
    def combine(cls, rows: Any, width: int) -> Any:
        return rows.swapaxes(0, 1).reshape(rows.shape[1], -1)

    @classmethod
    def fit(
        cls, x: np.ndarray, config: CodecConfig, rng: np.random.Generator, kernels: Any, report: Progress
    ) -> Codebook:
        most = config.bits
        require(
            config.count <= most * x.shape[1],
            f"{config.count} bits are more than {most} for each of {x.shape[1]} numbers; give fewer",
        )
        offset = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        directions = principal_directions(x)  # (D, D)
        report(1, 3)
        z = (x[:: -(-len(x) // SAMPLES)] - offset) @ directions
        bits, levels = spread(z, config.count, most)
        report(2, 3)
        used = np.flatnonzero(bits)
        used = used if len(used) else np.arange(1)
        places = np.arange(1 << int(bits.max()))
        entries = np.stack([levels[c].take(places, mode="clip") for c in used])  # (C, K)
        along = directions[:, used]
        report(3, 3)
        transform = Transform(along, along.T, offset)
        return Codebook(cls.name, entries[:, :, None], x.shape[1], transform=transform, bits=bits[used])

    @classmethod
    def fit_searches(cls, config: CodecConfig) -> tuple[float, float]:
        return 1, 0
