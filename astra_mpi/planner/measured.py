"""Codecs in the order of their measured accuracy, with the figures (docs/log/), which is what `plan` recommends by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from astra_mpi.codec.config import CodecConfig
from astra_mpi.costs.wires import Coding
from astra_mpi.models import FAMILIES
from astra_mpi.models.decoder import Decoder

#: whose figures stand where nobody has said how many ranks there will be
USUAL_RANKS = 4


class Figure(NamedTuple):
    """What one codec costs."""

    codec: CodecConfig
    by_ranks: Mapping[int, float]  # number of ranks -> the figure, in the unit of `Measured`
    fit: str = ""  # options of `calibrate` that the codec does not say
    searched: float = 1.0  # share of a vector's directions in which entries are searched

    def coding(self, d_model: int) -> Coding:
        """As such codebooks are used in a model of this width."""
        return Coding(self.codec, (None if self.searched == 1 else max(1, round(self.searched * d_model)),))


class Rounded(NamedTuple):
    """What activations, or keys and values, cost as shorter numbers."""

    strategy: str
    by_ranks: Mapping[int, float]


class Measured(NamedTuple):
    """What was measured: codecs, and strategies that round, each most accurate first."""

    on: str
    unit: str  # with {} for a figure
    figures: tuple[Figure, ...]
    rounded: tuple[Rounded, ...] = ()

    @property
    def falls(self) -> bool:
        """Whether less is better."""
        return self.unit == _RATIO

    @property
    def codecs(self) -> tuple[CodecConfig, ...]:
        return tuple(figure.codec for figure in self.figures)

    def like(self, codec: CodecConfig, n_layers: int) -> Figure | None:
        """Of the same codes, or of those that stand for the same with bits nearest to these, up to a quarter away."""
        bits = codec.mean_bits(n_layers)
        alike = [f for f in self.figures if (f.codec.site, f.codec.predict) == (codec.site, codec.predict)]

        def away(figure: Figure) -> float:
            return abs(figure.codec.mean_bits(n_layers) - bits)

        same = next((figure for figure in alike if same_codes(figure.codec, codec)), None)
        best = same or min(alike, key=away, default=None)
        return best if same or (best and away(best) <= bits / 4) else None

    def loss(self, figure: Figure | Rounded, ranks: int) -> float:
        """The figure at the measured number of ranks that is nearest to `ranks`, or minus it: the less the better. The
        most that is known where there is none."""
        sign = 1 if self.falls else -1
        if not figure.by_ranks:
            return max(self.loss(other, ranks) for other in self.figures if other.by_ranks)
        return sign * figure.by_ranks[_nearest(figure.by_ranks, ranks)]

    def told(self, figure: Figure | Rounded | None, ranks: int) -> str | None:
        """A figure in words, at the measured number of ranks that is nearest to `ranks`; None: there is none."""
        if figure is None or not figure.by_ranks:
            return None
        at = _nearest(figure.by_ranks, ranks)
        return f"{self.unit.format(figure.by_ranks[at])} at P = {at}"


def _nearest(by_ranks: Mapping[int, float], ranks: int) -> int:
    return min(by_ranks, key=lambda n: (abs(n - ranks), n))


def _by_stages(site: str, *figures: Sequence[float]) -> tuple[Figure, ...]:
    """Of M = 8, 4, 2, of G = 1 with K = 1024, and of M = 1, each on 2, 4 and 8 ranks, or none."""
    one_of_1024 = CodecConfig(kind="grouped", codebook_size=1024)
    codecs = (CodecConfig(stages=8), CodecConfig(stages=4), CodecConfig(stages=2), one_of_1024, CodecConfig(stages=1))
    return tuple(
        Figure(replace(codec, site=site), dict(zip((2, 4, 8), found, strict=False)))
        for codec, found in zip(codecs, figures, strict=True)
    )


def _predicted(stages: Sequence[int], n_layers: int, by_ranks: Mapping[int, float]) -> Figure:
    """With stages where the blocks of the measured model have them."""
    codec = CodecConfig(site="normed", predict="linear", stages=_stretched(stages, n_layers))
    return Figure(codec, by_ranks, "--predict-rank 0")


def _stretched(stages: Sequence[int], n_layers: int) -> tuple[int, ...]:
    """Stages of the blocks after the first, for a model of another depth: those at the same share of it."""
    after = max(n_layers - 1, 1)
    return (0, *(stages[i * len(stages) // after] for i in range(n_layers - 1)))


#: SmolLM2's blocks after the first in groups that share stages, and what they have in proportion
_GROUPS = (4, 4, 4, 4, 4, 3, 6)


def _spread(*stages: int) -> tuple[int, ...]:
    return tuple(m for m, n in zip(stages, _GROUPS, strict=True) for _ in range(n))


_STAGES_10 = (0, 1, 0, 1, 1, 2, 1, 2, 1, 0, 1, 1, *(2,) * 4, *(3,) * 4, *(2,) * 3, *(0,) * 6)
_STAGES_32 = (*(2,) * 4, *(5,) * 4, *(2,) * 4, 5, 6, 6, 6, *(10,) * 4, *(5,) * 3, *(1,) * 6)


def _smollm2(n_layers: int) -> tuple[Figure, ...]:
    scalar = CodecConfig(kind="scalar", site="normed", predict="linear", vector_bits=512)
    by_size = (
        Figure(CodecConfig(kind="scalar", site="kv", vector_bits=512), {4: 1.008}),
        Figure(scalar, {2: 1.005, 4: 1.010, 8: 1.015}, "--predict-rank 0"),
        Figure(replace(scalar, vector_bits=256), {2: 1.011, 4: 1.020, 8: 1.032}, "--predict-rank 0"),
        Figure(CodecConfig(kind="scalar", site="kv", vector_bits=256), {4: 1.032}),
        _predicted(_spread(6, 18, 8, 22, 40, 20, 4), n_layers, {2: 1.018, 4: 1.034, 8: 1.053})._replace(searched=0.31),
        _predicted(_spread(3, 9, 4, 11, 20, 10, 2), n_layers, {2: 1.030, 4: 1.057, 8: 1.086})._replace(searched=0.18),
        _predicted(_STAGES_32, n_layers, {2: 1.049, 4: 1.085, 8: 1.126})._replace(searched=0.11),
        _predicted(_STAGES_10, n_layers, {2: 1.083, 4: 1.146, 8: 1.219})._replace(searched=0.07),
        Figure(CodecConfig(site="kv", stages=4), {4: 1.158}),
    )
    return tuple(_from_inputs(figure) if figure.codec.predicts else figure for figure in by_size)


def _from_inputs(figure: Figure) -> Figure:
    return figure._replace(codec=replace(figure.codec, inputs=1), fit="--predict-rank 0 --metric output")


def _sentences(n_layers: int) -> tuple[Figure, ...]:
    found = (((4, 5, 5, 5, 5), {4: 0.8247}), ((2, 2, 2, 3, 3), {4: 0.8242}))
    return (*(_predicted(stages, n_layers, by_ranks) for stages, by_ranks in found), *_STSB)


_ROUNDED_KV = (Rounded("sp:kv:float16", {4: 1.000}), Rounded("sp:kv:int8", {4: 1.000}))
_RATIO = "{:.3f}x perplexity"
_BOOKS = _by_stages(
    "normed",
    (1.001, 1.003, 1.005),
    (1.002, 1.007, 1.015),
    (1.008, 1.023, 1.051),
    (1.018, 1.050, 1.110),
    (1.025, 1.064, 1.137),
)
_CIFAR = _by_stages(
    "normed", (40.0, 39.9, 39.9), (39.6, 39.2, 38.7), (38.4, 36.7, 35.8), (37.9, 35.0, 32.6), (36.6, 32.2, 28.8)
)
_STSB = _by_stages(
    "hidden",
    (0.8169, 0.8085, 0.8052),
    (0.8164, 0.8087, 0.7978),
    (0.8057, 0.7844, 0.7699),
    (0.7993, 0.7701, 0.7536),
    (),
)


def measured(family: str, n_layers: int) -> Measured:
    """For models of `family` with so many blocks, or what is nearest to them."""
    if family == "vit":
        return Measured("CIFAR-100", "{:.1f}% right of 40.3%", _CIFAR)
    if family == "gpt2":
        return Measured("books", _RATIO, _BOOKS, (Rounded("sp:int8", {2: 1.000, 4: 1.000, 8: 1.000}),))
    if issubclass(FAMILIES.get(family, object), Decoder):
        return Measured("SmolLM2-135M", _RATIO, _smollm2(n_layers), _ROUNDED_KV)
    rounded = (Rounded("sp:int8", {2: 0.8207, 4: 0.8203, 8: 0.8203}),)
    return Measured("STS-B", "correlation {:.4f} of 0.8203", _sentences(n_layers), rounded)


def best_codec(budget_bits: float, codecs: Sequence[CodecConfig]) -> CodecConfig | None:
    """The most accurate codec of at most `budget_bits` per token and block; `codecs` by accuracy. None: none fits."""
    return next((codec for codec in codecs if codec.bits_per_token <= budget_bits), None)


def same_codes(a: CodecConfig, b: CodecConfig) -> bool:
    """Whether two codecs are the same but for how entries are searched, and for sinks, which no figure is of."""
    return replace(a, encoder="auto", sinks=0) == replace(b, encoder="auto", sinks=0)
