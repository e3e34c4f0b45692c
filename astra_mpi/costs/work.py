"""What the cost model counts in: model shape, a cut, operations by kind, exchanges (docs/explanation/planner.md)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from operator import add
from typing import Any, NamedTuple

from astra_mpi.config import ModelConfig
from astra_mpi.models import FAMILIES
from astra_mpi.models.recipe import block_shapes
from astra_mpi.partition import Hears


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that its costs depend on."""

    config: ModelConfig
    mlp: int  # multiply-adds of the MLP per token and block
    n_class: int = 0  # class tokens per sequence, replicated on every rank
    causal: bool = False
    rotary: bool = False  # keys carry a position
    gated: bool = False  # MLPs have a gate
    other_weights: int = 0  # parameters outside the blocks
    embed: int = 0  # multiply-adds of embedding a token: a patch; words are looked up

    @property
    def project_q(self) -> int:
        """Multiply-adds per token of the query projection, and of the output projection."""
        return self.config.d_model * self.config.d_queries

    @property
    def project_kv(self) -> int:
        """Multiply-adds per token of the key and value projections together."""
        return 2 * self.config.d_model * self.config.d_kv


def shape_of(config: ModelConfig) -> Shape:
    """Of a family's config; a bare `ModelConfig` is taken as an encoder without class token, MLP of two layers."""
    family: Any = FAMILIES.get(getattr(config, "family", ""))
    weights = block_shapes(config) if family is None else family.weight_shapes(config)
    first = {name: shape for name, shape in weights.items() if name.startswith("blocks.0.") and len(shape) == 2}
    attention = 2 * config.d_model * (config.d_queries + config.d_kv)
    return Shape(
        config,
        mlp=sum(map(prod, first.values())) - attention,
        n_class=getattr(config, "n_class", 0),
        causal=family is not None and family.causal,
        rotary=family is not None and family.recipe_of(config).rotary,
        gated=family is not None and family.recipe_of(config).gated,
        other_weights=sum(prod(shape) for name, shape in weights.items() if not name.startswith("blocks.")),
        embed=prod(weights.get("embed.patch.weight", (0,))),
    )


@dataclass(frozen=True)
class Job:
    """`batch` sequences of the same length, cut over ranks."""

    shape: Shape
    counts: tuple[int, ...]  # content tokens of a sequence on each rank
    batch: int = 1
    kept_bytes: float = 4.0  # of a number of the keys and values that decoding keeps

    @property
    def size(self) -> int:
        return len(self.counts)

    @property
    def tokens(self) -> int:
        """T: content tokens of a sequence."""
        return sum(self.counts)

    def own_sinks(self, sinks: int, rank: int) -> int:
        """Of the first `sinks` tokens of a sequence those that lie on a rank."""
        return min(max(sinks - sum(self.counts[:rank]), 0), self.counts[rank])

    def replicas(self, sinks: int, rank: int) -> int:
        """Of the first `sinks` tokens of a sequence those before a rank's slice, which it computes itself."""
        return min(sinks, sum(self.counts[:rank])) if self.counts[rank] else 0


class Work(NamedTuple):
    """Operations by kind of kernel, for they run at different speeds."""

    gemm: float = 0  # multiply-adds of linear layers
    attention: float = 0  # multiply-adds of scores and weighted values
    encode: float = 0  # multiply-adds of the codebook search
    states: float = 0  # multiply-adds of predictions of states, which are the same to the bit on all ranks
    table: float = 0  # float32 numbers added from projected tables or decoded from codebooks
    elements: float = 0  # float32 numbers that pass norms, activation and residual sums
    stream: float = 0  # float32 numbers of keys, values and tables that one token alone meets
    weights: float = 0  # weights that one token alone meets, as they are kept
    blocks: float = 0  # blocks run: each costs some time whatever its size

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        return Work._make(map(add, self, other))

    def __mul__(self, factor: float) -> Work:  # type: ignore[override]
        return Work._make([count * factor for count in self])

    @property
    def multiply_adds(self) -> float:
        """The count of docs/explanation/planner.md: linear layers, attention, codebook search and predictions."""
        return self.gemm + self.attention + self.encode + self.states


class RankWork(NamedTuple):
    """One rank's share of a stage, in the order in which it runs."""

    before: Work = Work()  # before its message can leave
    during: Work = Work()  # needs nothing of the others: hides the exchange
    after: Work = Work()  # needs what came

    @property
    def total(self) -> Work:
        return self.before + self.during + self.after


@dataclass(frozen=True)
class Transfer:
    """One exchange of all ranks."""

    kind: str  # "gather": every rank gets every message; "reduce": the sum of all; "close": the same, in a hop or two
    contributed: tuple[int, ...]  # bytes that each rank puts in
    paper_bits: float  # what arXiv 2505.19342 charges: one local payload
    forward: bool = False  # to the ranks behind the sender only, who waits for none of them
    heard: Hears = False  # where windows leave some ranks out: whom each rank hears
    late: bool = False  # it is needed one stage later, after what that one does before and during its own


@dataclass(frozen=True)
class Stage:
    """Work that all ranks do `repeats` times in a forward pass, with at most one exchange each time."""

    repeats: int
    ranks: tuple[RankWork, ...]
    transfer: Transfer | None = None


@dataclass(frozen=True)
class Cost:
    """A strategy's forward pass on P ranks."""

    strategy: str
    exact: bool
    stages: tuple[Stage, ...]
    closing_bytes: int = 0  # a rank's share of what is combined after the last block: class tokens or pooling
    table_bytes: int = 0  # projected tables, codebooks, predictors and states on every rank
    block_share: float = 1.0  # largest part of the blocks' weights that one rank holds

    def work(self) -> list[Work]:
        """Per rank, over the whole forward pass."""
        n_ranks = len(self.stages[0].ranks)
        return [sum((s.ranks[r].total * s.repeats for s in self.stages), Work()) for r in range(n_ranks)]

    def contributed_bytes(self) -> list[int]:
        """Per rank, over the block exchanges of a forward pass."""
        n_ranks = len(self.stages[0].ranks)
        sends = [(s.repeats, s.transfer) for s in self.stages if s.transfer is not None]
        return [sum(n * transfer.contributed[r] for n, transfer in sends) for r in range(n_ranks)]


def output_work(shape: Shape, rows: float) -> Work:
    """Output projection, MLP, and the norm, activation and residual sums between them."""
    config = shape.config
    return Work(gemm=rows * (shape.project_q + shape.mlp), elements=rows * (3 * config.d_model + config.d_ff))


def closing_bytes(job: Job) -> int:
    """Of a rank's share in what ends a forward pass: class tokens, pooled embeddings or last rows as float32."""
    return job.batch * int(job.shape.config.share_width) * 4 if job.size > 1 else 0
