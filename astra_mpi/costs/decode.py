"""What a new token costs after a prefill, counted: alone on one rank, or merged over all (docs/explanation/planner.md).

Pure functions of a model's shape, the cut and the strategy: no MPI, no seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from astra_mpi.config import ModelConfig, require
from astra_mpi.costs.windows import window_shares, within
from astra_mpi.costs.wires import Coding, astra_wire, segment_wire
from astra_mpi.costs.work import Job, Shape, Transfer, Work, output_work

MODES = ("local", "merged")
#: tokens of all sequences that one pass computes, where some are drafts
MOST_ROWS = 16
#: float32 numbers that an elementwise kernel passes in the time of a score of one new token: its product, exponential
#: and share of the values, a key at a time; of SmolLM2-135M on one core of a Zen 4 server
_PER_SCORE = 32


@dataclass(frozen=True)
class Decode:
    """One step: a token for every sequence of the batch."""

    mode: str  # "local": the rank with a sequence's last token alone; "merged": all ranks
    ranks: tuple[Work, ...]  # per rank, over all blocks and the head
    transfers: tuple[tuple[int, Transfer], ...]  # how many of each kind, per step
    cache_bytes: tuple[int, ...]  # per rank, at the last token


def decode_cost(
    job: Job, coding: Coding, strategy: str, mode: str, n_new: int, alone: int = 0, drafts: int = 0
) -> Decode:
    """A step in the middle of `n_new` new tokens. InputError where a strategy or a mode cannot be used.

    Sequences are spread: rank r has slice (r + s) mod P of sequence s. alone: the rank of `single`. drafts: tokens of
    every sequence that the step checks beside the one that it is sure of.
    """
    name = strategy.split(":")[0]
    require(job.shape.causal, "only decoders generate")
    require(name in ("single", "sp", "segment_means", "astra"), f"{strategy} keeps no keys and values of whole tokens")
    require(mode == "local" or name != "single", "one rank has nothing to merge")
    placed = job.shape.rotary or any(job.shape.config.windows)
    require(not (name == "segment_means" and placed), "means of tokens have no position for rotary keys and windows")
    if mode == "merged":
        return _merged(job, n_new, drafts)
    if name == "single":
        whole, last = replace(job, counts=(job.tokens,)), [job.batch * (r == alone) for r in range(job.size)]
        return _local(whole, coding, strategy, n_new, last, drafts)
    last = [-(-(job.batch - (job.size - 1 - r)) // job.size) for r in range(job.size)]  # from the last rank on
    return _local(job, coding, strategy, n_new, last, drafts)


def tokens_per_pass(acceptance: float, drafts: int) -> float:
    """That a sequence gets on average, if each draft is right with this probability where those before it are."""
    return float(sum(acceptance**j for j in range(1 + drafts)))


def _local(job: Job, coding: Coding, strategy: str, n_new: int, last: list[int], drafts: int) -> Decode:
    """last (P,): sequences whose last token a rank has."""
    shape, config = job.shape, job.shape.config
    sinks = astra_wire(shape, coding).sinks if strategy.split(":")[0] == "astra" else 0
    replicas = job.replicas(sinks, job.size - 1)
    own, far = job.counts[-1] + replicas, _far_keys(job, strategy) - replicas
    exact = 1 / config.n_layers if strategy == "astra:inputs" else 0.0  # share of the blocks that keep far rows
    row_bytes, per_sequence, kept = 2 * config.d_kv * job.kept_bytes, Work(), 0.0
    for window, share in window_shares(config).items():
        read, away = within(window, own + n_new / 2, far)
        far_work = _far_work(job, coding, strategy, away) * (1 - exact) + _kept_rows(job, away) * exact
        per_sequence += (_kept_rows(job, read) + far_work) * share
        first, away = within(window, own, far)
        rows = (first + n_new - 1 + exact * away) * row_bytes
        kept += share * (rows + (1 - exact) * _far_bytes(job, coding, strategy, away))
    computed = [n * (1 + drafts) for n in last]
    ranks = tuple(_step_work(shape, n, per_sequence) + head_work(shape, n) for n in computed)
    return Decode("local", ranks, (), tuple(int(n * config.n_layers * kept) for n in last))


def _merged(job: Job, n_new: int, drafts: int) -> Decode:
    shape, config, size = job.shape, job.shape.config, job.size
    rows = job.batch * (1 + drafts)
    own = [sum(job.counts[(r + i) % size] for i in range(job.batch)) for r in range(size)]  # of all sequences
    # new tokens' keys and values go to one rank after another
    read = [_kept_rows(job, _seen_rows(config, job.batch, n + job.batch * n_new / 2 / size)) for n in own]
    read = [one * config.n_layers * (1 + drafts) for one in read]
    ranks = [_step_work(shape, rows, Work()) + kept for kept in read]
    ranks[0] += head_work(shape, rows)
    sent = rows * config.n_heads * (config.d_head + 2) * 4
    ids = (1 + 4 * job.batch * (1 + 2 * drafts), *(1,) * (size - 1))  # rank 0 samples, and says what to check next
    transfers = (config.n_layers, Transfer("gather", (sent,) * size, 8.0 * sent)), (1, Transfer("gather", ids, 0.0))
    row_bytes = config.n_layers * 2 * config.d_kv * job.kept_bytes
    cache = tuple(int((n + job.batch * ((n_new - 1 - r + size - 1) // size)) * row_bytes) for r, n in enumerate(own))
    return Decode("merged", tuple(ranks), transfers if size > 1 else (), cache)


def _seen_rows(config: ModelConfig, batch: int, n: float) -> float:
    """Of n tokens of `batch` sequences those that are inside a window, on average over the blocks."""
    return sum(share * (min(n, batch * w) if w else n) for w, share in window_shares(config).items())


def _step_work(shape: Shape, n: int, per_sequence: Work) -> Work:
    """All blocks for one token of each of n sequences; weights are read once for all of them."""
    if n == 0:
        return Work()
    config = shape.config
    weights = 2 * shape.project_q + shape.project_kv + shape.mlp
    elements = output_work(shape, n).elements + n * config.d_model
    linear = Work(weights=weights, gemm=n * weights if n > 1 else 0, elements=elements, blocks=1)
    return (linear + per_sequence * n) * config.n_layers


def head_work(shape: Shape, n: int) -> Work:
    """Logits of n tokens."""
    numbers = getattr(shape.config, "vocab_size", 0) * shape.config.d_model
    return Work(weights=numbers, gemm=n * numbers if n > 1 else 0) if n else Work()


def _kept_rows(job: Job, n: float) -> Work:
    """Attention to n tokens whose keys and values are kept, in one block: as many float32 numbers have these bytes, and
    scores cost what they cost in every type."""
    config = job.shape.config
    return Work(stream=2 * config.d_kv * n * job.kept_bytes / 4, elements=_PER_SCORE * config.n_heads * n)


def _far_work(job: Job, coding: Coding, strategy: str, n_far: int) -> Work:
    """Attention to what is far, in one block."""
    if _counts_codes(job.shape, coding, strategy):  # rows of a table in float32
        n_rows = _distinct(coding, n_far)
        config = job.shape.config
        return Work(stream=2 * config.d_kv * n_rows, elements=_PER_SCORE * config.n_heads * n_rows)
    return _kept_rows(job, n_far)


def _counts_codes(shape: Shape, coding: Coding, strategy: str) -> bool:
    """Whether the distinct codes of far tokens are kept, with how often they occur, for rows of a finished table.

    Others are kept as keys and values; what it costs to keep their codes (far = "codes") is not counted here.
    """
    return strategy.split(":")[0] == "astra" and _one_row(coding) and not shape.rotary


def _one_row(coding: Coding) -> bool:
    """Whether one code is one row of finished keys and values."""
    return coding.codec.codes_per_token == 1 and coding.has_tables and not coding.codec.predicts


def _distinct(coding: Coding, n_far: int) -> int:
    """Rows of far tokens, equal ones counted: as many as were found, or at most as there are codes."""
    return min(n_far, coding.codec.codebook_size if coding.distinct is None else coding.distinct)


def _far_bytes(job: Job, coding: Coding, strategy: str, n_far: int) -> float:
    """Kept of what is far, in one block."""
    row_bytes = 2 * job.shape.config.d_kv * job.kept_bytes
    if strategy.split(":")[0] == "segment_means":
        return n_far * (row_bytes + 4)
    if _counts_codes(job.shape, coding, strategy):
        return _distinct(coding, n_far) * 6  # a code, and the logarithm of its count
    return n_far * row_bytes


def _far_keys(job: Job, strategy: str) -> int:
    """Far keys that the last rank holds of a sequence: tokens, or means of every rank's."""
    name, _, ratio = strategy.partition(":")
    if name != "segment_means":
        return job.tokens - job.counts[-1]
    wire = segment_wire(job.shape, int(ratio or 8))
    return sum(wire.keys(n) for n in job.counts[:-1])
