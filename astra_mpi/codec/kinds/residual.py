"""Stages of full width: each quantises what the stages before it left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.fit import SWEEPS, refine
from astra_mpi.codec.kind import Kind, Progress, Sigma2
from astra_mpi.codec.kmeans import full_passes, kmeans
from astra_mpi.codec.tables import gram_sums

if TYPE_CHECKING:
    from astra_mpi.codec.config import CodecConfig

STAGE_ITERATIONS = 10  # of k-means per stage: after that, sweeps over all stages gain more per second


class Residual(Kind):
    """x^ is the sum of an entry per stage. Of no stages there is one entry, the mean, whose code has 0 bits."""

    name = "residual"
    count = "stages"
    letter = "M"

    @classmethod
    def n_codes(cls, config: CodecConfig) -> int:
        return max(config.count + cls._more(config), 1)

    @staticmethod
    def _more(config: CodecConfig) -> int:
        """Stages of near tokens beyond those of all; none where nothing is sent."""
        return config.near_stages if config.count else 0

    @classmethod
    def vector_bits(cls, config: CodecConfig) -> int:
        return config.count * config.bits

    @classmethod
    def fits(cls, config: CodecConfig, book: Codebook) -> bool:
        if not config.count:
            return (book.n_codes, book.size) == (1, 1)
        more = cls._more(config)
        return super().fits(config, book) and book.ordinary == (config.count if more else None)

    @classmethod
    def shape(cls, config: CodecConfig, width: int) -> tuple[int, int, int]:
        return super().shape(config, width) if config.count else (1, 1, width)

    @classmethod
    def entry_width(cls, n_codes: int, width: int) -> int:
        return width

    @classmethod
    def full_width(cls, config: CodecConfig) -> bool:
        return True

    @classmethod
    def layers(cls, config: CodecConfig) -> int:
        return cls.n_codes(config)

    @classmethod
    def encode(cls, x: np.ndarray, searched: np.ndarray, half_norms: np.ndarray, kernels: Any) -> np.ndarray:
        return kernels.encode_residual(x, searched, half_norms)

    @classmethod
    def decode(cls, codes: np.ndarray, entries: np.ndarray, width: int, kernels: Any) -> np.ndarray:
        return kernels.decode_residual(codes, entries)

    @classmethod
    def target(cls, c: int, x: Any, last: Any, row: Any, entry_width: int) -> Any:
        return last - row if c else x

    @classmethod
    def combine(cls, rows: Any, width: int) -> Any:
        return rows.sum(axis=0)

    @classmethod
    def fit(
        cls, x: np.ndarray, config: CodecConfig, rng: np.random.Generator, kernels: Any, report: Progress
    ) -> Codebook:
        """Greedy stages; then all refined together."""
        book, codes = cls._greedy(x, config, rng, kernels, report)
        if not config.count:
            return book
        book = refine(book, x, kernels, codes)
        return cls._with_more(book, x, config, rng, kernels) if cls._more(config) else book

    @classmethod
    def _with_more(
        cls, book: Codebook, x: np.ndarray, config: CodecConfig, rng: np.random.Generator, kernels: Any
    ) -> Codebook:
        """With the stages of near tokens: greedy ones, so that the others are a codec as they are. The last entry of
        each is 0, the code of tokens that are not near."""
        rest = x - book.decode(book.encode(x, kernels), kernels)
        entries = [*book.entries]
        for _ in range(cls._more(config)):
            stage = kmeans(rest, config.codebook_size - 1, rng, kernels, STAGE_ITERATIONS)
            entries.append(np.concatenate([stage, np.zeros_like(stage[:1])]))
            last = Codebook(cls.name, entries[-1][None], x.shape[1])
            kernels.add_entries(rest, -entries[-1], last.encode(rest, kernels)[:, 0])
        return Codebook(cls.name, np.stack(entries), x.shape[1], ordinary=config.count)

    @classmethod
    def fit_embedded(
        cls, x: np.ndarray, config: CodecConfig, rng: np.random.Generator, kernels: Any, report: Progress
    ) -> Codebook:
        """Greedy stages, none of which knows of those after it."""
        return cls._greedy(x, config, rng, kernels, report)[0]

    @classmethod
    def _greedy(
        cls, x: np.ndarray, config: CodecConfig, rng: np.random.Generator, kernels: Any, report: Progress
    ) -> tuple[Codebook, np.ndarray]:
        """Stages, each fitted to what the stages before it left, and the codes of x."""
        if not config.count:
            report(1, 1)
            mean = x.mean(axis=0, dtype=np.float64)[None, None]
            return Codebook(cls.name, mean, x.shape[1]), np.zeros((len(x), 1), np.uint8)
        entries, codes = [], []
        rest = np.array(x, order="C")
        for stage in range(config.count):
            entries.append(kmeans(rest, config.codebook_size, rng, kernels, STAGE_ITERATIONS))
            last = Codebook(cls.name, entries[-1][None], x.shape[1])
            codes.append(last.encode(rest, kernels))
            kernels.add_entries(rest, -entries[-1], codes[-1][:, 0])
            report(stage + 1, config.count)
        return Codebook(cls.name, np.stack(entries), x.shape[1]), np.concatenate(codes, axis=1)

    @classmethod
    def fit_searches(cls, config: CodecConfig) -> tuple[float, float]:
        return config.count * (full_passes(STAGE_ITERATIONS) + 1), config.count * (SWEEPS + 1)

    @classmethod
    def span(cls, c: int, entry_width: int) -> slice:
        return slice(None)

    @classmethod
    def sigma2(cls, book: Codebook, centred: bool) -> Sigma2:
        return gram_sums(book, centred)

    @classmethod
    def cut(cls, u: np.ndarray, book: Codebook) -> np.ndarray:
        return u.T[None]
