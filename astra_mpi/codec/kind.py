"""What is asked of every codec kind. A kind adds `encode`, `decode`, `target`, `combine`, `fit` and its counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from astra_mpi.codec.config import CodecConfig

Book = Any  # a `codec.codebook.Codebook`, which knows its kind and not the other way round
Progress = Callable[[int, int], None]  # (codebooks fitted, codebooks in all)
#: codes (n, C) and kernels -> (n,) float64
Sigma2 = Callable[[np.ndarray, ModuleType], np.ndarray]


class Kind:
    """A vector (D,) is C codes; code c is the index of one of K entries (W,), those of its own codebook."""

    name: ClassVar[str]
    #: the setting that says how many codes a vector has, and its letter in tables; "": it is always the same number
    count: ClassVar[str] = ""
    letter: ClassVar[str] = ""
    #: whether x^ is the sum of an entry per code, so that what is linear in x^ comes from tables of the entries'
    additive: ClassVar[bool] = True
    #: whether codes are of coordinates of its own (`Codebook.transform`), and nothing is searched
    transforms: ClassVar[bool] = False
    #: whether `train` makes codebooks to begin with, and needs none of calibrate
    trains: ClassVar[bool] = True
    #: whether it is the paper's, whose published figures stand beside ours
    published: ClassVar[bool] = False

    @classmethod
    def n_codes(cls, config: CodecConfig) -> int:
        """C, where it depends on the vectors: the most."""
        raise NotImplementedError

    @classmethod
    def vector_bits(cls, config: CodecConfig) -> int:
        """Bits of a vector's codes."""
        return cls.n_codes(config) * config.bits

    @classmethod
    def fits(cls, config: CodecConfig, book: Book) -> bool:
        """Whether a codebook is one of this config, which is of one codebook (`CodecConfig.of`)."""
        return (book.n_codes, book.size) == (cls.n_codes(config), config.codebook_size)

    @classmethod
    def entry_width(cls, n_codes: int, width: int) -> int:
        """W, of vectors of `width`."""
        raise NotImplementedError

    @classmethod
    def shape(cls, config: CodecConfig, width: int) -> tuple[int, int, int]:
        """(C, K, W) of the entries of one codebook of vectors of `width`; -1: as its samples made it."""
        n_codes = cls.n_codes(config)
        return n_codes, config.codebook_size, cls.entry_width(n_codes, width)

    @classmethod
    def full_width(cls, config: CodecConfig) -> bool:
        """Whether entries, as wide as the vector, can be searched in a subspace or in another metric."""
        return False

    @classmethod
    def layers(cls, config: CodecConfig) -> int:
        """Rows of the vector's width that are searched, stored and read for a vector, for the cost model."""
        raise NotImplementedError

    @classmethod
    def head_stages(cls, config: CodecConfig) -> int:
        """Codes of a vector that are those of another codebook (`Codebook.head`)."""
        return 0

    @classmethod
    def label(cls, codec: Mapping[str, Any]) -> str:
        """How many codes, as tables say it, of a config as a mapping: M=4."""
        if not cls.count:
            return ""
        count = codec[cls.count]
        if isinstance(count, list | tuple):  # of blocks, and there of keys and of values
            means = [sum(one) / len(one) if isinstance(one, list | tuple) else one for one in count]
            count = f"{sum(means) / len(means):.3g} on average"
        return f"{cls.letter}={count}"

    @classmethod
    def encode(cls, x: np.ndarray, searched: np.ndarray, half_norms: np.ndarray, kernels: Any) -> np.ndarray:
        """Codes (n, C) of x (n, D), or of x in the subspace that `searched` (C, K, W or d) is in.

        half_norms (C, K): ||searched entry||^2 / 2. The same codes as `target` defines.
        """
        raise NotImplementedError

    @classmethod
    def decode(cls, codes: np.ndarray, entries: np.ndarray, width: int, kernels: Any) -> np.ndarray:
        """x^ (n, width) float32 of codes (n, C): the same as `combine` of their entries (C, K, W)."""
        raise NotImplementedError

    @classmethod
    def target(cls, c: int, x: Any, last: Any, row: Any, entry_width: int) -> Any:
        """What code c of x (n, D) stands for, (n, W): the code is that of the nearest entry, the lowest on a tie.

        last, row (n, W): what code c - 1 stands for, and the entries chosen for it. Arrays of NumPy or of PyTorch: this
        is the definition that the float64 computation of `verify` and the training follow.
        """
        raise NotImplementedError

    @classmethod
    def combine(cls, rows: Any, width: int) -> Any:
        """The entries of all codes (C, n, W) -> x^ (n, width); arrays of NumPy or of PyTorch."""
        raise NotImplementedError

    @classmethod
    def fit(cls, x: np.ndarray, config: CodecConfig, rng: np.random.Generator, kernels: Any, report: Progress) -> Book:
        """The codebook for samples x (n, D) float32."""
        raise NotImplementedError

    @classmethod
    def fit_embedded(
        cls, x: np.ndarray, config: CodecConfig, rng: np.random.Generator, kernels: Any, report: Progress
    ) -> Book:
        """The same, so that the first codes are a codec without the others, for kinds whose codes follow each other."""
        return cls.fit(x, config, rng, kernels, report)

    @classmethod
    def fit_searches(cls, config: CodecConfig) -> tuple[float, float]:
        """How often `fit` searches all its samples at full width, at most: for a first codebook, to refine it."""
        return 25, 1

    @classmethod
    def span(cls, c: int, entry_width: int) -> slice:
        """Additive kinds: the numbers of x^ that entries of code c add to."""
        raise NotImplementedError

    @classmethod
    def sigma2(cls, book: Book, centred: bool) -> Sigma2:
        """Additive kinds: a function that gives the variance of x^ from codes, or the mean square if not `centred`."""
        raise NotImplementedError

    @classmethod
    def cut(cls, u: np.ndarray, book: Book) -> np.ndarray:
        """Additive kinds: u (H, D) -> (C or 1, W, H), the part that each code's entries are multiplied by."""
        raise NotImplementedError
