"""What every strategy computes and sends, counted: multiply-adds per rank and bytes per exchange.

Pure functions of a model's shape, the cut and the strategy: no MPI, no seconds (`latency.py` has those).
The model: docs/explanation/planner.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.config import require
from astra_mpi.costs.rivals import block_parallel, tensor_parallel
from astra_mpi.costs.windows import own_seen, seen_through
from astra_mpi.costs.work import (
    Cost,
    Job,
    RankWork,
    Shape,
    Stage,
    Transfer,
    Work,
    closing_bytes,
    output_work,
    peak_bytes,
)


@dataclass(frozen=True)
class Coding:
    """How `astra` is run: the codec and the choices that change its cost."""

    codec: CodecConfig = field(default_factory=CodecConfig)
    subspaces: tuple[int | None, ...] = (None,)  # widths searched, one per codebook set; None: exact search
    remote: str = "table"  # far keys and values by projected tables, or "gemm"
    distinct: int | None = None  # distinct far codes per sequence where counted keys are on, None: off
    rank: float | None = None  # of the maps that predict, where the codec does; None: whole matrices

    @property
    def has_tables(self) -> bool:
        """Whether far keys and values come from projected tables."""
        codec = self.codec
        can = codec.site != "kv" and (codec.rule.additive or (codec.n_codebooks == 1 and not codec.rule.transforms))
        return can and self.remote == "table"

    def predictor_numbers(self, width: int) -> float:
        """Of the map that predicts a token's state in a block: as many multiply-adds."""
        if not self.codec.predicts:
            return 0
        return width * width if self.rank is None or self.rank >= width else 2 * width * self.rank


def coding_of(codec: Codec, remote: str = "table") -> Coding:
    """How a model's codec costs."""
    coded = codec.blocks[1:] if codec.config.predicts else codec.blocks[:1]
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

    def message_bits(self, n_tokens: int, causal: bool) -> int:
        """Of one sequence's n tokens of one rank."""
        near = min(n_tokens, self.near * (1 if causal else 2))
        return self.keys(n_tokens) * self.bits + near * self.near_bits

    def keys(self, n_tokens: int) -> int:
        """Far keys that n tokens of one rank become."""
        return -(-n_tokens // self.tokens_per_key)


def encode_madds(codec: CodecConfig, width: int, subspaces: Sequence[int | None] = (None,)) -> float:
    """Multiply-adds of coding one vector of `width`; the mean over `subspaces`, which differ from block to block.

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
        encode = sum(encode_madds(part, config.d_kv, coding.subspaces) for part in parts)
        decode = Work(table=sums * kv_width)
    else:
        encode = encode_madds(parts[0], config.d_model, coding.subspaces)
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
    # a product in float32 whatever the others are, as the search is
    expect = Work(encode=coding.predictor_numbers(d), elements=2 * d)
    encode = Work(encode=encode_madds(part, d, coding.subspaces), table=sums * d, elements=2 * d)
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


def token_parallel(job: Job, wires: Wire | Sequence[Wire], strategy: str, exact: bool = False) -> Cost:
    """Every rank holds whole weights and its tokens; one all-gather per block, hidden behind local work.

    wires: of all blocks alike, or one per block.
    """
    config = job.shape.config
    wires = (wires,) * config.n_layers if isinstance(wires, Wire) else wires
    stages = stages_of(job, wires, [config.window(i) for i in range(config.n_layers)])
    return Cost(strategy, exact, stages, closing_bytes=closing_bytes(job), peak_bytes=peak_bytes(job))


def stages_of(job: Job, wires: Sequence[Wire], windows: Sequence[int]) -> tuple[Stage, ...]:
    """Of blocks with these wires and windows (0: none), those that are alike taken together."""
    kinds = Counter(zip(wires, windows, strict=True))
    return tuple(
        Stage(n, tuple(_token_rank(job, wire, r, window) for r in range(job.size)), _transfer(job, wire, window))
        for (wire, window), n in kinds.items()
    )


def _transfer(job: Job, wire: Wire, window: int) -> Transfer | None:
    if not wire.site or job.size == 1 or not wire.bits + wire.near_bits:
        return None
    even = job.tokens / job.size
    near = min(even, wire.near * (1 if job.shape.causal else 2))
    paper_bits = job.batch * (even * wire.bits / wire.tokens_per_key + near * wire.near_bits)
    if window and not wire.whole:
        reach = seen_through(job.counts, window, job.shape.causal, wire.sinks)
        sent = tuple(-(-job.batch * n * wire.bits // 8) for n in reach.sent)
        share = min(1.0, sum(reach.sent) / max(job.tokens, 1))
        return Transfer("gather", sent, paper_bits * share, job.shape.causal, reach.heard)
    sending = [n - job.own_sinks(wire.sinks, rank) for rank, n in enumerate(job.counts)]
    sending = [*sending[:-1], 0] if job.shape.causal else sending  # nobody sees the last rank's tokens
    sent = tuple(-(-job.batch * wire.message_bits(n, job.shape.causal) // 8) for n in sending)
    return Transfer("gather", sent, paper_bits, job.shape.causal)


def _token_rank(job: Job, wire: Wire, rank: int, window: int = 0) -> RankWork:
    shape, config, n = job.shape, job.shape.config, job.counts[rank]
    replicas = job.replicas(wire.sinks, rank)
    d, rows = config.d_model, n + shape.n_class + replicas
    seen = own_seen(n, window, shape.causal)  # own tokens that a query sees on average
    far_ranks = range(rank) if shape.causal else (s for s in range(job.size) if s != rank)
    n_held = n_far = sum(wire.keys(job.counts[s] - job.own_sinks(wire.sinks, s)) for s in far_ranks)
    n_sent, far_share = n - job.own_sinks(wire.sinks, rank), 1.0
    if window:
        reach = seen_through(job.counts, window, shape.causal, wire.sinks)
        n_far, n_sent = reach.seen[rank], reach.sent[rank] if wire.site and not wire.whole else n_sent
        n_held = n_held if wire.whole else n_far
        far_share = min(1.0, window / (2 * max(rows, 1)))  # of the queries, those whose window holds a far token
    if wire.distinct is not None:
        n_held = n_far = min(n_far, wire.distinct)
    norm = Work(elements=rows * d)
    project = Work(gemm=rows * (shape.project_q + shape.project_kv))
    near = shape.n_class + replicas * (not window)
    local = Work(attention=2 * config.d_queries * rows * (seen + near))
    far = wire.decode * n_held + Work(attention=2 * config.d_queries * rows * n_far * far_share)
    encode = wire.encode * n_sent
    before = {"normed": norm + encode, "kv": norm + project + encode}.get(wire.site or "", encode)
    during = {"normed": project + local, "kv": local}.get(wire.site or "", norm + project + local)
    during += wire.expect_own * n + wire.expect_far * n_held
    after = (far + output_work(shape, rows)) * job.batch + Work(blocks=1)
    return RankWork(before * job.batch, during * job.batch, after)


def single(job: Job, rank: int = 0) -> Cost:
    """Everything on one rank; the others idle."""
    alone = token_parallel(replace(job, counts=(job.tokens,)), Wire(None), "single", exact=True)
    stages = tuple(
        replace(stage, ranks=tuple(stage.ranks[0] if r == rank else RankWork() for r in range(job.size)))
        for stage in alone.stages
    )
    return replace(alone, stages=stages)


def astra(job: Job, coding: Coding) -> Cost:
    """The method (arXiv 2505.19342), with projected tables and counted keys as `coding` says."""
    if coding.codec.predicts:
        return replace(astra_inputs(job, coding), strategy="astra")
    return _coded(job, coding)


def _coded(job: Job, coding: Coding) -> Cost:
    """`astra` with codes in every block."""
    codec, config = coding.codec, job.shape.config
    width = config.d_kv if codec.site == "kv" else config.d_model
    numbers = 0
    for i in range(config.n_layers):
        parts = codec.of(i)
        for part in parts:
            size, stages = part.codebook_size, part.rule.head_stages(part)
            rows = 2 * part.rule.layers(part) + stages * size if part.rule.transforms else size * part.rule.layers(part)
            numbers += rows * width
        if coding.has_tables:
            numbers += parts[0].codes_per_token * codec.codebook_size * 2 * config.d_kv
    if codec.predicts:  # and the states of all tokens, with what is expected of them
        each = int(coding.predictor_numbers(width)) + 2 * job.batch * job.tokens * width // config.n_layers
        numbers += config.n_layers * each
    wires = [astra_wire(job.shape, coding, i) for i in range(config.n_layers)]
    return replace(token_parallel(job, wires, "astra"), table_bytes=4 * numbers)


def astra_inputs(job: Job, coding: Coding) -> Cost:
    """`astra` with a first block that sends nothing: far keys and values are projected from the embedded inputs."""
    shape, cost = job.shape, _coded(job, coding)
    windows = [shape.config.window(i) for i in range(shape.config.n_layers)]
    far = Work(gemm=shape.embed + shape.project_kv, elements=2 * shape.config.d_model)
    own = Work(gemm=shape.embed, elements=2 * shape.config.d_model) if coding.codec.predicts else Work()
    sinks, whole = astra_wire(shape, coding).sinks, coding.codec.predicts
    first = stages_of(job, [Wire(None, decode=far, expect_own=own, whole=whole, sinks=sinks)], windows[:1])
    others = stages_of(job, [astra_wire(shape, coding, i) for i in range(1, len(windows))], windows[1:])
    return replace(cost, strategy="astra:inputs", stages=first + others)


STRATEGIES: dict[str, Callable[[Job, Coding], Cost]] = {
    "single": lambda job, coding: single(job),
    "tp": lambda job, coding: tensor_parallel(job),
    "sp": lambda job, coding: token_parallel(job, sp_wire(job.shape, "x", "float32"), "sp", exact=True),
    "sp:kv": lambda job, coding: token_parallel(job, sp_wire(job.shape, "kv", "float32"), "sp:kv", exact=True),
    "sp:float16": lambda job, coding: token_parallel(job, sp_wire(job.shape, "x", "float16"), "sp:float16"),
    "sp:int8": lambda job, coding: token_parallel(job, sp_wire(job.shape, "x", "int8"), "sp:int8"),
    "sp:kv:float16": lambda job, coding: token_parallel(job, sp_wire(job.shape, "kv", "float16"), "sp:kv:float16"),
    "sp:kv:int8": lambda job, coding: token_parallel(job, sp_wire(job.shape, "kv", "int8"), "sp:kv:int8"),
    "bp": lambda job, coding: block_parallel(job),
    "bp:sp": lambda job, coding: block_parallel(job, sequence=True),
    "segment_means:8": lambda job, coding: token_parallel(job, segment_wire(job.shape, 8), "segment_means:8"),
    "astra": astra,
    "astra:inputs": astra_inputs,
}
