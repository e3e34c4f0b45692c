"""What `sp`, `segment_means` and `astra` send of their tokens and make of others', counted per token and block.

Pure functions of a model's shape and of how codes are made (docs/explanation/planner.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.leaps import leaps
from astra_mpi.config import require
from astra_mpi.costs.work import Shape, Work


@dataclass(frozen=True)
class Coding:
    """How `astra` is run: the codec and the choices that change its cost."""

    codec: CodecConfig = field(default_factory=CodecConfig)
    #: widths searched, block by block from the first that may send codes, or of some block; None: exact search
    subspaces: tuple[int | None, ...] = (None,)
    remote: str = "table"  # far keys and values by projected tables, or "gemm"
    distinct: int | None = None  # distinct far codes per sequence where counted keys are on, None: off
    rank: float | None = None  # of the maps that predict, where the codec does; None: whole matrices

    @property
    def has_tables(self) -> bool:
        """Whether far keys and values come from projected tables."""
        codec = self.codec
        can = codec.site != "kv" and (codec.rule.additive or (codec.n_codebooks == 1 and not codec.rule.transforms))
        return can and self.remote == "table"

    def searched(self, i: int) -> tuple[int | None, ...]:
        """Widths searched in block i: where stages are many, they are wide. Of all blocks where its own are unknown."""
        n = self.codec.n_books
        first = max(0, i - self.codec.has_maps) * n
        return self.subspaces[first : first + n] or self.subspaces

    def predictor_numbers(self, width: int) -> float:
        """Of the map that predicts a token's state in a block: as many multiply-adds."""
        if not self.codec.predicts:
            return 0
        known = (1 + self.codec.inputs) * width
        return known * width if self.has_whole_maps(width) else (known + width) * (self.rank or 0)

    def has_whole_maps(self, width: int) -> bool:
        """Whether what predicts is of full rank."""
        return self.rank is None or self.rank >= width

    def leaps_over(self, i: int, width: int) -> bool:
        """Whether ranks make no states in block i, but keys and values from those that they have."""
        return i > 0 and not self.codec.block_bits(i) and leaps(self.codec, self.has_whole_maps(width))


def coding_of(codec: Codec, remote: str = "table") -> Coding:
    """How a model's codec costs."""
    coded = codec.blocks[int(codec.config.has_maps) :]
    widths = tuple(None if b.basis is None else b.basis.shape[1] for block in coded for b in block.codebooks)
    ranks = [block.predictor.rank for block in coded if block.predictor is not None]
    return Coding(codec.config, widths or (None,), remote, rank=sum(ranks) / len(ranks) if ranks else None)


class Wire(NamedTuple):
    """What a rank sends of its tokens, and what the others make of it."""

    site: str | None  # "hidden", "normed" or "kv"; None: nothing is sent
    bits: int = 0  # per key sent
    encode: Work = Work()  # per own token
    decode: Work = Work()  # per far key
    tokens_per_key: int = 1
    distinct: int | None = None
    sinks: int = 0  # first tokens that are not sent, for every rank behind computes them itself
    expect_own: Work = Work()  # per own token, while messages travel
    expect_far: Work = Work()  # per far token, then too
    whole: bool = False  # all tokens are sent, whatever windows leave out
    near: int = 0  # tokens at an end of a slice that looks at another, which cost more:
    near_bits: int = 0  # so many bits more
    late: bool = False  # what is sent is needed in the next block only

    def message_bits(self, n_tokens: int, causal: bool) -> int:
        """Of one sequence's n tokens of one rank."""
        near = min(n_tokens, self.near * (1 if causal else 2))
        return self.keys(n_tokens) * self.bits + near * self.near_bits

    def keys(self, n_tokens: int) -> int:
        """Far keys that n tokens of one rank become."""
        return -(-n_tokens // self.tokens_per_key)


def encode_madds(codec: CodecConfig, width: int, subspaces: Sequence[int | None] = (None,)) -> float:
    """Multiply-adds of coding one vector of `width`; the mean over `subspaces`.

    Exact search: K * width per stage, or over all groups together. In a subspace of d: width * d to project, then
    d * K per stage.
    """
    if codec.rule.transforms:
        return float((codec.rule.layers(codec) + codec.rule.head_stages(codec) * codec.codebook_size) * width)
    entries = codec.codebook_size * codec.rule.layers(codec)
    each = [entries * width if d is None else d * (width + entries) for d in subspaces]
    return sum(each) / len(each)


def astra_wire(shape: Shape, coding: Coding, i: int = 0) -> Wire:
    """Codes of C * b bits per token, as block i sends them."""
    codec, config = coding.codec, shape.config
    parts, kv_width = codec.of(i), 2 * config.d_kv
    if codec.predicts:
        return _predicted_wire(shape, coding, i)
    sums = sum(part.rule.layers(part) + part.rule.head_stages(part) for part in parts) / len(parts)
    if codec.site == "kv":
        encode = sum(encode_madds(part, config.d_kv, coding.searched(i)) for part in parts)
        decode = Work(table=sums * kv_width)
    else:
        encode = encode_madds(parts[0], config.d_model, coding.searched(i))
        if not coding.has_tables:
            decode = Work(gemm=shape.project_kv, table=sums * config.d_model, elements=config.d_model)
        else:
            decode = Work(table=parts[0].codes_per_token * kv_width)
    return Wire(
        codec.site,
        codec.block_bits(i),
        Work(encode=encode),
        decode,
        distinct=coding.distinct,
        sinks=_sinks(shape, codec),
        near=codec.near,
        near_bits=codec.near_bits(i),
    )


def _sinks(shape: Shape, codec: CodecConfig) -> int:
    return codec.sinks if shape.causal and not shape.n_class else 0


def _predicted_wire(shape: Shape, coding: Coding, i: int) -> Wire:
    """Codes of what a prediction misses: states of all tokens are predicted, and those of far ones projected, while
    codes travel; what the codes add comes after."""
    codec, config = coding.codec, shape.config
    (part,) = codec.of(i)
    d, kv_width, sums = config.d_model, 2 * config.d_kv, part.rule.layers(part) + part.rule.head_stages(part)
    expect = Work(states=coding.predictor_numbers(d), elements=2 * d)
    encode = Work(encode=encode_madds(part, d, coding.searched(i)), table=sums * d, elements=2 * d)
    added, project = Work(table=sums * d, elements=d), Work(gemm=shape.project_kv)
    tables = Work(table=part.codes_per_token * kv_width, elements=kv_width)
    far, decode = (expect + project, added + tables) if coding.has_tables else (expect, added + project)
    return Wire(
        codec.site,
        codec.block_bits(i),
        encode,
        decode,
        expect_own=expect,
        expect_far=far,
        whole=True,
        sinks=_sinks(shape, codec),
        near=codec.near,
        near_bits=codec.near_bits(i),
    )


def sp_wire(shape: Shape, gather: str, number: str) -> Wire:
    """Activations ("x") or keys and values ("kv") as float32, float16, or int8 with a float32 scale per token."""
    config = shape.config
    width = config.d_model if gather == "x" else 2 * config.d_kv
    bits = {"float32": 32 * width, "float16": 16 * width, "int8": 8 * width + 32}[number]
    cast = Work() if number == "float32" else Work(elements=width)
    decode = Work(gemm=shape.project_kv, elements=config.d_model) if gather == "x" else Work()
    return Wire("hidden" if gather == "x" else "kv", bits, cast, cast + decode)


def segment_wire(shape: Shape, tokens_per_mean: int) -> Wire:
    """Means of consecutive tokens as float32; far keys and values are projected from them."""
    require(
        not (shape.rotary or any(shape.config.windows)),
        "segment_means cannot be used: means of tokens have no position for rotary keys and windows",
    )
    d = shape.config.d_model
    decode = Work(gemm=shape.project_kv, elements=d)
    return Wire("hidden", 32 * d, Work(elements=d), decode, tokens_per_key=tokens_per_mean)
