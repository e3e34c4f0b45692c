"""Costs of the rivals that do not work token by token: tensor and block parallelism (docs/explanation/planner.md)."""

from __future__ import annotations

from astra_mpi.config import require
from astra_mpi.costs.work import Cost, Job, RankWork, Stage, Transfer, Work, closing_bytes, output_work
from astra_mpi.partition import even, weighted


def tensor_parallel(job: Job) -> Cost:
    """Megatron: heads and MLP columns of every block, all tokens; two all-reduces per block.

    Where the job's tokens are cut unevenly, heads and columns are cut in the same proportion.
    """
    shape, config, size = job.shape, job.shape.config, job.size
    rows, d = job.tokens + shape.n_class, config.d_model
    seen = rows / 2 if shape.causal else rows
    attention = Work(rows * (2 * shape.project_q + shape.project_kv), 2 * config.d_queries * rows * seen)  # all heads
    mlp = Work(gemm=rows * shape.mlp, elements=rows * config.d_ff)  # all columns
    between = Work(elements=2 * rows * d)  # norm and residual sum, on every rank
    half = Work(blocks=0.5)
    heads, columns = (_shares(n, job) for n in (config.n_kv_heads, config.d_ff))
    sent = job.batch * job.tokens * d * 4
    transfer = Transfer("reduce", (sent,) * size, job.batch * job.tokens / size * 32 * d) if size > 1 else None
    stages = tuple(
        Stage(config.n_layers, tuple(RankWork((whole * s + between) * job.batch + half) for s in shares), transfer)
        for whole, shares in ((attention, heads), (mlp, columns))
    )
    return Cost("tp", True, stages, block_share=max(heads))


def _shares(n: int, job: Job) -> list[float]:
    """Part of n things on each rank."""
    uneven = max(job.counts) - min(job.counts) > 1
    return [int(x) / n for x in (weighted(n, job.counts) if uneven else even(n, job.size))]


def block_parallel(job: Job, n_groups: int = 1, sequence: bool = False) -> Cost:
    """DeTransformer: in each of `n_groups` groups, all blocks but the last are P sub-blocks of width D / P, one a rank.

    The last one is whole, computed by every rank, or with `sequence` by tokens. Another architecture: latency only.
    InputError where the ranks cannot share the heads evenly, or a group would have fewer than two blocks.
    """
    shape, config, size = job.shape, job.shape.config, job.size
    require(not (shape.rotary or shape.gated), "rotary positions and gated MLPs are not cut over ranks")
    n_cut = config.n_kv_heads  # divides the query heads and the width
    require(n_cut % size == 0, f"{n_cut} key and value heads cannot be cut into {size} equal parts")
    require(
        config.n_layers >= 2 * n_groups, f"{config.n_layers} blocks are too few for {n_groups} groups of two or more"
    )
    rows, width = job.tokens + shape.n_class, config.d_model // size
    seen = rows / 2 if shape.causal else rows
    project = (2 * shape.project_q + shape.project_kv) / size**2
    inner = 4 * config.d_model
    sub = Work(rows * (project + 2 * width * inner), 2 * width * rows * seen, elements=rows * (4 * width + inner))
    one = Work(blocks=1)
    stages = [Stage(config.n_layers - n_groups, (RankWork(sub * job.batch + one),) * size)]
    gathered = Transfer("gather", (job.batch * job.tokens * width * 4,) * size, _paper_float(job))
    own = [n + shape.n_class for n in job.counts] if sequence else [rows] * size
    inputs = Work(gemm=rows * shape.project_kv, elements=rows * config.d_model)  # keys and values of all tokens
    query = Work(gemm=shape.project_q, attention=2 * config.d_queries * seen)
    whole = [inputs + query * n + output_work(shape, n) for n in own]
    ranks = tuple(RankWork(after=work * job.batch + one) for work in whole)
    stages.append(Stage(n_groups, ranks, gathered if size > 1 else None))
    if sequence and size > 1:
        sent = tuple(job.batch * n * config.d_model * 4 for n in job.counts)
        stages.append(Stage(n_groups, (RankWork(),) * size, Transfer("gather", sent, _paper_float(job))))
    strategy = ":".join(["bp", *["sp"] * sequence, *[str(n_groups)] * (n_groups > 1)])
    return Cost(strategy, False, tuple(stages), closing_bytes=closing_bytes(job))


def _paper_float(job: Job) -> float:
    return job.batch * job.tokens / job.size * 32 * job.shape.config.d_model
