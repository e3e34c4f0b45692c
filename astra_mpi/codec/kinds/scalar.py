"""Scalar codes: every coordinate by itself, along the principal directions, with the bits that it is worth.

The first codes are residual stages: few bits are better spent on whole vectors, and no direction's levels reach as far
as the rare large ones. What they leave goes to directions: bits where another one lowers the squared error most
(reverse water-filling, on the samples). Levels are those of least squared error (Lloyd, Max). But for the stages
nothing is searched: a vector costs a product with the directions, and another one back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.codec.codebook import Codebook, Transform
from astra_mpi.codec.config import KINDS, CodecConfig
from astra_mpi.codec.kind import Kind, Progress
from astra_mpi.codec.levels import spread
from astra_mpi.codec.subspace import principal_directions
from astra_mpi.config import require

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLES = 1 << 14  # that levels are fitted to, at most: a direction has 256 at most
HEAD_STAGES = 2  # at most; a third one saves less than its search costs (docs/explanation/quantisers.md)
HEAD = "residual"


class Scalar(Kind):
    """x^ = the entries of its first codes + offset + the levels of the others times their directions."""

    name = "scalar"
    count = "vector_bits"
    letter = "bits"
    additive = False  # it is a sum, but tables of projected entries would be as large as all levels of all directions
    trains = False
    transforms = True

    @classmethod
    def head_stages(cls, config: CodecConfig) -> int:
        """How many codes are residual stages; those of one entry cost nothing, and there are none."""
        return min(HEAD_STAGES, config.count // config.bits) if config.bits else 0

    @classmethod
    def n_codes(cls, config: CodecConfig) -> int:
        return max(config.count, 1)  # at most: a bit for each

    @classmethod
    def vector_bits(cls, config: CodecConfig) -> int:
        return config.count

    @classmethod
    def fits(cls, config: CodecConfig, book: Codebook) -> bool:
        spent = -1 if book.transform is None else int(book.code_bits.sum())
        return spent == config.count and book.size <= config.codebook_size

    @classmethod
    def shape(cls, config: CodecConfig, width: int) -> tuple[int, int, int]:
        return -1, -1, 1

    @classmethod
    def entry_width(cls, n_codes: int, width: int) -> int:
        return 1

    @classmethod
    def layers(cls, config: CodecConfig) -> int:
        return -(-config.count // 2)  # directions, at about two bits each

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
        head, stages = None, cls.head_stages(config)
        if stages:
            first = CodecConfig(kind=HEAD, stages=stages, codebook_size=config.codebook_size)
            head = KINDS[HEAD].fit(x, first, rng, kernels, lambda done, n: report(done, n + 1))
            x = x - head.decode(head.encode(x, kernels), kernels)
        n_bits = config.count - stages * config.bits
        most = min(config.bits, 8)
        require(
            n_bits <= most * x.shape[1],
            f"{config.count} bits are too many for {x.shape[1]} numbers of at most {most}; give fewer",
        )
        offset = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        directions = principal_directions(x)  # (D, D)
        z = (x[:: -(-len(x) // SAMPLES)] - offset) @ directions
        bits, levels = spread(z, n_bits, most)
        used = np.flatnonzero(bits)
        used = used if len(used) else np.arange(1)
        entries = cls._entries([levels[c] for c in used], 1 << int(bits.max()))
        report(1, 1)
        along = directions[:, used]
        return Codebook(
            cls.name, entries, x.shape[1], transform=Transform(along, along.T, offset), bits=bits[used], head=head
        )

    @staticmethod
    def _entries(levels: Sequence[np.ndarray], size: int) -> np.ndarray:
        """(C, K, 1): levels of each direction, the last one repeated."""
        return np.stack([row.take(np.arange(size), mode="clip") for row in levels])[:, :, None]

    @classmethod
    def fit_searches(cls, config: CodecConfig) -> tuple[float, float]:
        stages = cls.head_stages(config)
        head = CodecConfig(kind=HEAD, stages=stages, codebook_size=config.codebook_size)
        starting, refining = KINDS[HEAD].fit_searches(head)
        return starting + refining + 1, 0
