"""Settings of a codec: how a block's activations become codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from astra_mpi.config import OPTIONAL, optional, require, stored_fields
from astra_mpi.registry import Registry

#: what a vector's codes stand for; a new codec kind is a line here and a file in codec/kinds (docs/extend.md)
KINDS = Registry(
    "astra_mpi.codec.kinds",
    {
        "residual": "residual:Residual",
        "grouped": "grouped:Grouped",
        "scalar": "scalar:Scalar",
    },
)
if TYPE_CHECKING:
    CodecKind = str
else:  # for decks
    CodecKind = Literal[tuple(KINDS)]
#: settings that say how many codes a vector has; every kind reads one of them, or none
COUNTS = ("groups", "stages", "vector_bits")
#: of every codebook alike; or per block, and there of both codebooks alike or of keys and of values
Counts = int | tuple[int | tuple[int, ...], ...]
SITES = ("hidden", "normed", "kv")
ENCODERS = ("auto", "exact", "subspace")
#: what maps foretell of a token: nothing; its attention input from what all ranks hold of it, so that codes stand for
#: what that misses (linear); the same from its last codes, while codes stand for the attention input itself (next)
PREDICTIONS = ("none", "linear", "next")
METRICS = ("keys-values", "output", "plain")  # by what codes are nearest (codec/metric.py)
MAX_CODEBOOK_SIZE = 65536
MAX_SINKS = 8  # first tokens of a sequence that may be exact on every rank
MAX_VECTOR_BITS = 1 << 20
MAX_STAGES, MAX_NEAR = 64, 1 << 20
MAX_INPUTS = 8


@dataclass(frozen=True)
class CodecConfig:
    """How a block's activations become codes (vector quantisation; docs/explanation/equations.md)."""

    site: str = "hidden"  # what is quantised: block input, normalised attention input, or keys and values
    kind: str = "residual"  # stages of full-width codebooks, groups of sub-vectors, or another of KINDS
    codebook_size: int = 256  # K, entries per codebook
    groups: int = 1  # G, where the kind has groups
    stages: Counts = 4  # M, where it has stages
    encoder: str = "auto"  # where entries are searched: all of the space, a subspace, or the cheaper one that will do
    sinks: int = optional(0)  # a decoder's first tokens that have no codes, for every rank computes them itself
    predict: str = optional("none")  # what is foretold of a token (PREDICTIONS, codec/predictor.py)
    inputs: int = optional(0)  # tokens whose inputs it is foretold from, too: its own, and those before it
    awaited: tuple[int, ...] = optional(())  # blocks that wait for their own codes where those of others are late
    near: int = optional(0)  # tokens next to another slice, of every slice, that have more stages
    near_stages: int = optional(0)  # how many more
    vector_bits: Counts = field(
        default=0, metadata=OPTIONAL
    )  # of a quantised vector, where the kind spreads bits over its directions

    def __post_init__(self) -> None:
        require(self.kind in KINDS, f"codec kind '{self.kind}' is unknown; use one of {', '.join(KINDS)}")
        require(self.site in SITES, f"codec site '{self.site}' is unknown; use one of {', '.join(SITES)}")
        require(
            1 <= self.codebook_size <= MAX_CODEBOOK_SIZE,
            f"codebook size {self.codebook_size} is outside 1..{MAX_CODEBOOK_SIZE}",
        )
        require(1 <= self.groups <= 4096, f"groups = {self.groups} is outside 1..4096")
        require(0 <= self.sinks <= MAX_SINKS, f"sinks = {self.sinks} is outside 0..{MAX_SINKS}")
        for name, most in (("stages", MAX_STAGES), ("vector_bits", MAX_VECTOR_BITS)):
            object.__setattr__(self, name, self._checked(name, most))
        require(
            self.encoder in ENCODERS, f"codec encoder '{self.encoder}' is unknown; use one of {', '.join(ENCODERS)}"
        )
        require(
            self.encoder != "subspace" or self.full_width,
            f"encoder 'subspace' needs codebooks of full width, not {self.n_codebooks} "
            f"{self.rule.count or self.kind + ' codes'}; use auto or exact",
        )
        graded = 0 < self.near <= MAX_NEAR and 0 < self.near_stages <= MAX_STAGES
        require(
            graded or self.near == self.near_stages == 0,
            f"near = {self.near} and near_stages = {self.near_stages}: give both, 1 to {MAX_NEAR} and 1 to {MAX_STAGES}"
            ", or none",
        )
        require(
            not graded or (self.rule.count == "stages" and self.codebook_size >= 2),
            "near tokens with more stages need kind 'residual' and entries of 1 bit or more; leave near out",
        )
        require(self.predict in PREDICTIONS, f"predict '{self.predict}' is unknown; use {' or '.join(PREDICTIONS)}")
        require(0 <= self.inputs <= MAX_INPUTS, f"inputs = {self.inputs} is outside 0..{MAX_INPUTS}")
        require(not self.inputs or self.predicts, "inputs are for predict 'linear'; leave them out")
        self._check_awaited()
        require(
            not self.has_maps or self.site == "normed",
            f"predict '{self.predict}' is of attention inputs; use site normed, not {self.site}",
        )

    @property
    def predicts(self) -> bool:
        """Whether codes stand for what a prediction misses."""
        return self.predict == "linear"

    @property
    def has_maps(self) -> bool:
        """Whether blocks have maps to their attention inputs; block 0 is then exact from the inputs, without codes."""
        return self.predict != "none"

    def _check_awaited(self) -> None:
        blocks = tuple(self.awaited)
        object.__setattr__(self, "awaited", blocks)
        sane = all(type(i) is int and i > 0 for i in blocks) and all(a < b for a, b in pairwise(blocks))
        require(sane, f"awaited = {blocks}: give blocks from 1 on, in ascending order, each once")
        require(not blocks or self.has_maps, "awaited blocks are for predict 'linear' or 'next'; leave them out")

    def _checked(self, name: str, most: int) -> Counts:
        """A count as int or tuple; 0: nothing is sent, and the mean stands for all."""
        value = getattr(self, name)
        if not isinstance(value, list | tuple):
            require(type(value) is int and 0 <= value <= most, f"{name} = {value} is outside 0..{most}")
            return value
        counts = tuple(tuple(one) if isinstance(one, list | tuple) else one for one in value)
        for one in counts:
            parts = one if isinstance(one, tuple) else (one,)
            fits = not isinstance(one, tuple) or (len(one) == 2 and self.site == "kv")
            require(
                fits, f"{name} has {parts} for a block; give a number, or with site kv one of keys and one of values"
            )
            sane = all(type(n) is int and 0 <= n <= most for n in parts)
            require(sane, f"{name} = {parts} of a block is outside 0..{most}")
        require(len(counts) > 0, f"{name} is an empty list; give a number, or one per block")
        return counts

    @property
    def rule(self) -> Any:
        """What the kind's codes stand for."""
        return KINDS[self.kind]

    @property
    def n_books(self) -> int:
        """Codebooks of a block: keys and values each have their own with site = kv."""
        return 2 if self.site == "kv" else 1

    @property
    def by_block(self) -> bool:
        """Whether blocks, or their keys and values, differ in how many codes they have."""
        return bool(self.rule.count) and isinstance(getattr(self, self.rule.count), tuple)

    def of(self, i: int) -> tuple[CodecConfig, ...]:
        """Of every codebook of block i, as if all blocks were like it."""
        if not self.by_block:
            return (self,) * self.n_books
        count = getattr(self, self.rule.count)[i]
        parts = count if isinstance(count, tuple) else (count,) * self.n_books
        return tuple(_with_count(self, n) for n in parts)

    def check_blocks(self, n_layers: int, where: str) -> None:
        """InputError unless counts that differ by block are as many as the model's blocks, which has awaited ones."""
        if self.by_block:
            n = len(getattr(self, self.rule.count))
            require(n == n_layers, f"{where}: {self.rule.count} of {n} blocks, the model has {n_layers}")
        beyond = [i for i in self.awaited if i >= n_layers]
        require(not beyond, f"{where}: awaited block {beyond[:1]} of a model of {n_layers} blocks, which begin at 0")

    @property
    def count(self) -> int:
        """The kind's count, of one codebook (`of`); the most of any where they differ."""
        if self.by_block:
            return max(part.count for i in range(self.n_counted) for part in self.of(i))
        return int(getattr(self, self.rule.count)) if self.rule.count else 1

    @property
    def n_codebooks(self) -> int:
        """Codebooks per quantised vector (G or M); the most of any block."""
        return max(part.rule.n_codes(part) for i in range(self.n_counted) for part in self.of(i))

    @property
    def n_counted(self) -> int:
        """Blocks that have counts of their own; 1: all are alike."""
        return len(getattr(self, self.rule.count)) if self.by_block else 1

    @property
    def full_width(self) -> bool:
        """Whether entries are as wide as the quantised vector, and can be searched in a subspace or another metric."""
        return self.rule.full_width(self)

    @property
    def codes_per_token(self) -> int:
        """C: codes a token sends per block, the most of any block; keys and values each have their own set with kv."""
        return max(sum(part.rule.n_codes(part) for part in self.of(i)) for i in range(self.n_counted))

    @property
    def bits(self) -> int:
        """b = ceil(log2 K): bits per code."""
        return (self.codebook_size - 1).bit_length()

    def block_bits(self, i: int) -> int:
        """Bits a token costs in block i."""
        return sum(part.rule.vector_bits(part) for part in self.of(i))

    @property
    def bits_per_token(self) -> float:
        """Bits an ordinary token costs in a block that sends, the mean over these as the settings list them."""
        return _mean([self.block_bits(i) for i in range(self.n_counted)], self.n_counted)

    def is_late(self, i: int) -> bool:
        """Whether block i, where codes are late, does without its own: it has some, and is not awaited."""
        return self.block_bits(i) > 0 and i not in self.awaited

    def near_bits(self, i: int) -> int:
        """How many more bits a token next to another slice costs in block i."""
        return sum(self.near_stages * self.bits for part in self.of(i) if part.count) if self.near else 0

    def mean_bits(self, n_layers: int, first: int = 0, near_share: float = 0.0, end: int | None = None) -> float:
        """Bits a sent token costs per block: the mean over all blocks of a model, those that send nothing too, and over
        tokens, of which near_share have more stages; an int where it is whole.

        first, end: blocks before this one, and from that one on, send nothing, nor does block 0 where blocks have
        maps.
        """
        sending = range(max(first, int(self.has_maps)), n_layers if end is None else end)
        return _mean([self.block_bits(i) + near_share * self.near_bits(i) for i in sending], n_layers)

    def as_dict(self) -> dict[str, Any]:
        """Fields that are `optional` only where they are set, so that codecs of earlier versions keep their digest."""
        return {name: _listed(value) for name, value in stored_fields(self).items()}


def _mean(bits: list[float] | list[int], n: int) -> float:
    mean = sum(bits) / n
    return int(mean) if mean == int(mean) else mean


@lru_cache
def _with_count(config: CodecConfig, count: int) -> CodecConfig:
    changed: dict[str, Any] = {config.rule.count: count}
    return dataclasses.replace(config, **changed)


def _listed(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    return [_listed(one) for one in value] if isinstance(value, tuple) else value


def check_counts(kind: str, given: Iterable[str], dashes: str, equals: str) -> None:
    """InputError on counts `given` that are not of this codec kind; dashes and equals: how settings are written."""
    require(kind in KINDS, f"codec kind '{kind}' is unknown; use one of {', '.join(KINDS)}")
    for count in sorted(given):
        owners = " or ".join(name for name, rule in KINDS.items() if rule.count == count)
        own = KINDS[kind].count
        cure = f"use {dashes}{own} or that kind" if own else "leave it out"
        require(own == count, f"{dashes}{count} is for {dashes}kind{equals}{owners}; {cure}")
