"""Codecs in the order of their measured accuracy (docs/log/accuracy.md), which is what `plan` recommends by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from astra_mpi.codec.config import CodecConfig
from astra_mpi.models import FAMILIES
from astra_mpi.models.decoder import Decoder


class Measured(NamedTuple):
    """What was measured, and the codecs, most accurate first."""

    on: str
    codecs: tuple[CodecConfig, ...]


_ONE_OF_1024 = CodecConfig(kind="grouped", codebook_size=1024)
_BY_STAGES = (CodecConfig(stages=8), CodecConfig(stages=4), CodecConfig(stages=2), _ONE_OF_1024, CodecConfig(stages=1))


def _at(site: str) -> tuple[CodecConfig, ...]:
    return tuple(replace(codec, site=site) for codec in _BY_STAGES)


_BY_FAMILY = {
    "vit": Measured("CIFAR-100", _at("normed")),
    "gpt2": Measured("books", _at("normed")),
    "llama": Measured("books, in a GPT-2", _at("normed")),
}
_SENTENCES = Measured("STS-B", _at("hidden"))


def measured(family: str) -> Measured:
    """For models of `family`, or what is nearest to them."""
    decodes = issubclass(FAMILIES.get(family, object), Decoder)
    return _BY_FAMILY.get(family) or (_BY_FAMILY["llama"] if decodes else _SENTENCES)


def best_codec(budget_bits: float, codecs: Sequence[CodecConfig]) -> CodecConfig | None:
    """The most accurate codec of at most `budget_bits` per token and block; `codecs` by accuracy. None: none fits."""
    return next((codec for codec in codecs if codec.bits_per_token <= budget_bits), None)


def same_codes(a: CodecConfig, b: CodecConfig) -> bool:
    """Whether two codecs are the same but for how entries are searched, and for sinks, which no figure is of."""
    return replace(a, encoder="auto", sinks=0) == replace(b, encoder="auto", sinks=0)
