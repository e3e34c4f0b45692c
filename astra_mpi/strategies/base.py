"""What the engine asks of every strategy."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from copy import copy
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from astra_mpi.codec.codec import Codec
from astra_mpi.config import ModelConfig, require
from astra_mpi.layout import Layout
from astra_mpi.models import FAMILIES
from astra_mpi.models.block import Block
from astra_mpi.models.recipe import Recipe
from astra_mpi.partition import Cut, cut
from astra_mpi.strategies.positions import Positions
from astra_mpi.strategies.spec import Option, Spec
from astra_mpi.wire.exchange import Exchange
from astra_mpi.wire.pending import Pending, Summing

#: work that gives way after each exchange that it has started, and ends with rows (n, D)
Steps = Generator[None, None, np.ndarray]


@dataclass(frozen=True)
class Parts:
    """What a strategy is made from: a model on one communicator, and how its remote keys are to be made."""

    config: ModelConfig
    blocks: list[Block]
    exchange: Exchange
    kernels: ModuleType
    codec: Codec | None = None
    weights: Sequence[float] | None = None  # relative speeds of the ranks
    counted_keys: bool = True
    remote: str = "auto"


class Strategy:
    """What a rank owns and what it exchanges, at work on one model and communicator."""

    name: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    #: why answers mean nothing, where only the time and the bytes do
    latency_only: ClassVar[str] = ""
    #: a rank copies its part of the blocks' weights at load and needs no more of them
    reads_part: ClassVar[bool] = False
    #: which rows each rank answers for, in the forward pass under way
    planned: Layout
    #: where the packed tokens of the batch stand, to be set before `begin`; None: that matters to no block
    positions: Positions | None = None
    #: forward passes that take turns on this rank, of which this is one
    n_turns: int = 1
    #: exchanges that this rank has started in the forward pass under way
    begun: list[Pending | Summing]

    def __init__(self, parts: Parts, spec: Spec) -> None:
        """Collective; the same arguments on all ranks. InputError where `obstacle` has a reason."""
        reason = self.obstacle(spec, parts.config, parts.codec, parts.exchange.size)
        require(reason is None, f"strategy {spec}: {reason}")
        self.spec = spec
        self.config, self.blocks, self.exchange, self.kernels = (
            parts.config,
            parts.blocks,
            parts.exchange,
            parts.kernels,
        )
        self.laps = parts.exchange.laps

    @property
    def xp(self) -> Any:
        """numpy or cupy: the module of all arrays that the model computes with."""
        return self.blocks[0].scratch.xp

    @property
    def dtype(self) -> type:
        """Of activations."""
        return self.blocks[0].scratch.dtype

    @classmethod
    def obstacle(cls, spec: Spec, config: ModelConfig, codec: Codec | None, size: int) -> str | None:
        """Why this strategy cannot be used on this model and number of ranks, or None."""
        return None

    @property
    def block_bytes(self) -> int:
        """Bytes of the blocks' weights that this rank computes with."""
        return sum(block.nbytes for block in self.blocks)

    def layout(self, lengths: np.ndarray, n_class: int, causal: bool, weights: Cut, spread: bool = False) -> Layout:
        """Which rows each rank answers for, of sequences with these content lengths (B,).

        spread: where tokens are cut, all ranks shall have the last tokens of some of the sequences.
        """
        raise NotImplementedError

    def begin(self, layout: Layout) -> None:
        """Plan a forward pass."""
        self.planned = layout
        self.begun = []

    @property
    def takes_halves(self) -> bool:
        """Whether another pass finds something to do while this one waits."""
        return self.n_exchanges > 0

    def twin(self) -> Strategy:
        """The same strategy for another forward pass at the same time: it shares weights and tables, no more."""
        return copy(self)

    @property
    def n_exchanges(self) -> int:
        """Block exchanges of one forward pass."""
        return 0

    @property
    def held(self) -> Layout:
        """The rows that this rank computes; those it answers for unless a strategy says otherwise."""
        return self.planned

    def enter(self, embed: Callable[[Layout], np.ndarray]) -> np.ndarray:
        """Rows (n, D) that enter the first block. Every rank has all inputs: `embed` gives the rows of any layout."""
        return embed(self.held)

    def block(self, i: int, x: np.ndarray) -> np.ndarray:
        """Block i on the rows held here, (n, D) -> (n, D)."""
        return to_the_end(self.steps(i, x))

    def steps(self, i: int, x: np.ndarray) -> Steps:
        """`block`, which gives way whenever it has started an exchange, before it waits for anything."""
        raise NotImplementedError

    def end(self) -> None:
        """After the last block: wait for what is still under way, and look at what could not be looked at before."""

    def answered(self, x: np.ndarray) -> np.ndarray:
        """Rows held here after the last block -> those that this rank answers for."""
        return x

    def abandoning(self, turn: int) -> Steps:
        """After a failure on this rank: the exchanges that it still owes, from that of `turn` on. A pass gives way once
        for each exchange."""
        for n in range(turn, self.n_exchanges):
            self._wait_for_all()
            if n >= len(self.begun):
                self.begun.append(self.begin_empty(n))
            yield
        self._wait_for_all()
        return np.empty((0, 0), np.float32)

    def _wait_for_all(self) -> None:
        for pending in self.begun:
            if not pending.over:
                pending.wait()

    def begin_empty(self, n: int) -> Pending | Summing:
        """Start the n-th exchange of the pass with zeros."""
        raise NotImplementedError

    def formula_bytes(self, layout: Layout) -> list[int]:
        """Per rank, what it contributes in one forward pass: the formula the measured bytes are held against."""
        return [0] * layout.size

    def distinct_keys(self) -> float | None:
        """Collective: mean number of distinct far keys per block and sequence in the last pass, where codes have them.

        Under causal attention, on the rank that sees most.
        """
        return None

    def describe(self) -> dict[str, Any]:
        """`codec`, `bits_per_token_per_block` and the choices made, for the summary."""
        return {"codec": None, "bits_per_token_per_block": 0, "choices": dict(self.spec.values)}

    def record(self) -> None:
        """Keep what far ranks see in the next passes, where `oracle_terms` needs it."""

    def oracle_terms(self) -> dict[str, Any]:
        """Collective: how the serial oracle is told what this strategy does; none for exact ones.

        "codes" and "seen" are of the last pass: per block, a row for each content token of all ranks, rank after rank.
        """
        return {}


def to_the_end(steps: Steps) -> np.ndarray:
    """What steps end with that give way to nobody."""
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            rows: np.ndarray = ended.value
            return rows


def recipe_of(config: ModelConfig) -> Recipe:
    """What the blocks of this (family's) config are made of."""
    return FAMILIES[getattr(config, "family", "")].recipe_of(config)


def is_plain(config: ModelConfig, recipe: Recipe) -> bool:
    """Whether a far token's score is its key times the query and no more: nothing turned, capped, normed."""
    placed = recipe.rotary or recipe.relative or any(config.windows)
    return not (placed or config.score_cap or recipe.qk_norm)


def on_rank_0(lengths: np.ndarray, exchange: Exchange, n_class: int, causal: bool) -> Layout:
    """The layout in which rank 0 answers for all rows."""
    alone = [1.0] + [0.0] * (exchange.size - 1)
    return Layout(cut(lengths, exchange.size, alone), exchange.rank, n_class, causal, replicas=1)
