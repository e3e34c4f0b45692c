"""What every strategy computes and sends, counted: multiply-adds per rank and bytes per exchange.

Pure functions of a model's shape, the cut and the strategy: no MPI, no seconds (`latency.py` has those).
The model: docs/explanation/planner.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, groupby

from astra_mpi.config import require
from astra_mpi.costs.mapped import mapped_wires
from astra_mpi.costs.rivals import block_parallel, tensor_parallel
from astra_mpi.costs.windows import own_seen, seen_through
from astra_mpi.costs.wires import Coding, Wire, astra_wire, segment_wire, sp_wire
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
)


def token_parallel(job: Job, wires: Wire | Sequence[Wire], strategy: str, exact: bool = False) -> Cost:
    """Every rank holds whole weights and its tokens; one all-gather per block, hidden behind local work.

    wires: of all blocks alike, or one per block.
    """
    config = job.shape.config
    wires = (wires,) * config.n_layers if isinstance(wires, Wire) else wires
    stages = stages_of(job, wires, [config.window(i) for i in range(config.n_layers)])
    return Cost(strategy, exact, stages, closing_bytes=closing_bytes(job))


def stages_of(job: Job, wires: Sequence[Wire], windows: Sequence[int]) -> tuple[Stage, ...]:
    """Of blocks with these wires and windows (0: none), those that are alike taken together; where some wait for what
    the one before sent, neighbours alone."""
    pairs = list(zip(wires, windows, strict=True))
    kinds = list(Counter(pairs).items())
    if any(wire.late for wire in wires):
        kinds = [(pair, len(list(alike))) for pair, alike in groupby(pairs)]
    return tuple(
        Stage(n, tuple(_token_ranks(job, wire, window)), _transfer(job, wire, window)) for (wire, window), n in kinds
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
    return Transfer("gather", sent, paper_bits, job.shape.causal, late=wire.late)


def _token_ranks(job: Job, wire: Wire, window: int) -> Iterator[RankWork]:
    """Of all ranks."""
    keys = [wire.keys(n - job.own_sinks(wire.sinks, rank)) for rank, n in enumerate(job.counts)]
    before, every = [0, *accumulate(keys)], sum(keys)
    for rank, own in enumerate(keys):
        yield _token_rank(job, wire, rank, window, before[rank] if job.shape.causal else every - own)


def _token_rank(job: Job, wire: Wire, rank: int, window: int, n_held: int) -> RankWork:
    """n_held: far keys that it makes, or would without a window."""
    shape, config, n = job.shape, job.shape.config, job.counts[rank]
    replicas = job.replicas(wire.sinks, rank)
    d, rows = config.d_model, n + shape.n_class + replicas
    seen = own_seen(n, window, shape.causal)  # own tokens that a query sees on average
    n_far, n_sent, far_share = n_held, n - job.own_sinks(wire.sinks, rank), 1.0
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


def sp_bits(shape: Shape, strategy: str) -> int:
    """Bits per token and block of `sp` with options."""
    options = strategy.split(":")[1:]
    numbers = [option for option in options if option != "kv"] or ["float32"]
    return sp_wire(shape, "kv" if "kv" in options else "x", numbers[0]).bits


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
    if coding.codec.has_maps:
        return replace(astra_inputs(job, coding), strategy="astra")
    return _coded(job, coding)


def astra_late(job: Job, coding: Coding) -> Cost:
    """`astra` whose codes serve the block after their own. InputError where codes have no maps to go by."""
    require(
        coding.codec.has_maps,
        "these codebooks have no maps for late codes; `calibrate --predict linear` or `--predict next` makes some",
    )
    return replace(astra_inputs(job, coding, late=True), strategy="astra:late")


#: a predictor as it is read, as integers, and as these are packed: 4, 2 and 4 bytes a number (2 with AMX)
PREDICTOR_COPIES = 2.5


def _coded(job: Job, coding: Coding, late: bool = False) -> Cost:
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
            numbers += (1 + late) * parts[0].codes_per_token * codec.codebook_size * 2 * config.d_kv
    if codec.predicts:  # and the states of all tokens, with what is expected of them
        numbers += (2 + codec.inputs) * job.batch * job.tokens * width
        map_numbers, rows_numbers = coding.predictor_numbers(width), (1 + codec.inputs) * width * 2 * config.d_kv
        for i in range(config.n_layers):
            composed = i > 0 and coding.leaps_over(i - 1, width)  # beside the map that was read
            made = rows_numbers if coding.leaps_over(i, width) else (PREDICTOR_COPIES - 1 + composed) * map_numbers
            numbers += int(map_numbers + made)
    wires = [astra_wire(job.shape, coding, i) for i in range(config.n_layers)]
    return replace(token_parallel(job, wires, "astra"), table_bytes=4 * numbers)


def astra_inputs(job: Job, coding: Coding, late: bool = False) -> Cost:
    """`astra` with a first block that sends nothing: far keys and values are projected from the embedded inputs."""
    shape, cost = job.shape, _coded(job, coding, late and not coding.codec.predicts)
    windows = [shape.config.window(i) for i in range(shape.config.n_layers)]
    far = Work(gemm=shape.embed + shape.project_kv, elements=2 * shape.config.d_model)
    own = Work(gemm=shape.embed, elements=2 * shape.config.d_model) if coding.codec.predicts else Work()
    sinks, whole = astra_wire(shape, coding).sinks, coding.codec.has_maps
    first = stages_of(job, [Wire(None, decode=far, expect_own=own, whole=whole, sinks=sinks)], windows[:1])
    plain = [astra_wire(shape, coding, i) for i in range(1, len(windows))]
    others = stages_of(job, mapped_wires(shape, coding, late) if whole else plain, windows[1:])
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
    "astra:late": astra_late,
}


def cost_of(strategy: str, job: Job, coding: Coding) -> Cost:
    """Of a strategy with any options, as it is written. InputError where it cannot be used, or is not known here."""
    if strategy in STRATEGIES:
        return STRATEGIES[strategy](job, coding)
    name, *options = strategy.split(":")
    number = next((int(option) for option in options if option.isdecimal()), 1)
    if name == "segment_means":
        return token_parallel(job, segment_wire(job.shape, number), strategy)
    if name == "bp":
        return block_parallel(job, number, "sp" in options)
    require(name == "astra" and "late" in options, f"the costs of {strategy} are not known")
    return astra_late(job, coding)
