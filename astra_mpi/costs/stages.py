"""What stages of blocks cost: what each holds, and what it hands on (docs/explanation/grid.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor, prod
from typing import NamedTuple

from astra_mpi.config import ModelConfig
from astra_mpi.costs.latency import Network, Speeds, latency
from astra_mpi.costs.work import Cost, Shape
from astra_mpi.models import FAMILIES
from astra_mpi.models.recipe import block_shapes

#: bytes of a number that is handed on
HANDED = {"float32": 4.0, "float16": 2.0, "int8": 1.0}


#: rows that take as long as what a pass takes beside its rows: reading weights, calls
ROWS_OF_A_PASS = 60.0
#: the same where narrow weights are made float32 in every pass
_ROWS_OF_WIDENING = 400.0
#: whole sequences go on unless pieces are sooner by more: a piece gathers the keys of all sequences before it
_NEAR = 1.03
#: passes of a batch for each stage, where ranks that share tokens exchange something in every block of every pass
_PASSES_PER_STAGE = 2


class Ends(NamedTuple):
    """Weights outside the blocks."""

    embed: int
    head: int
    shared: int  # of `embed` what a head needs too: the words of a tied one


def ends_of(config: ModelConfig) -> Ends:
    """Of a family's config."""
    family = FAMILIES.get(getattr(config, "family", ""))
    shapes = block_shapes(config) if family is None else family.weight_shapes(config)
    outside = {name: prod(shape) for name, shape in shapes.items() if not name.startswith("blocks.")}
    embed = sum(n for name, n in outside.items() if name.startswith("embed."))
    shared = outside.get("embed.word", 0) if getattr(config, "tied", False) else 0
    return Ends(embed, sum(outside.values()) - embed, shared)


def outside_weights(ends: Ends, n_stages: int, head: int) -> list[int]:
    """Weights outside the blocks that each stage holds; head: the stage that has the head."""
    held = [ends.embed, *[0] * (n_stages - 1)]
    held[head] += ends.head + (ends.shared if head else 0)
    return held


def block_weights(shape: Shape) -> int:
    """Weights of a block's matrices."""
    return 2 * shape.project_q + shape.project_kv + shape.mlp


def stage_seconds(
    cost: Cost, speeds: Sequence[Speeds], network: Network, counts: Sequence[int], accounting: str = "port"
) -> list[float]:
    """Of each stage, by the cost of all blocks on one group of ranks: speeds (S T,) of the stages' ranks in turn."""
    n_layers, n_ranks = max(sum(counts), 1), len(speeds) // len(counts)
    blocks = replace(cost, closing_bytes=0)
    parts = [tuple(speeds[s * n_ranks : (s + 1) * n_ranks]) for s in range(len(counts))]
    whole = {part: latency(blocks, part, network, accounting).total for part in dict.fromkeys(parts)}
    return [whole[part] * n / n_layers for part, n in zip(parts, counts, strict=True)]


class Parting(NamedTuple):
    """How a batch goes through stages: in parts of whole sequences, each in pieces of these."""

    parts: int
    pieces: int  # of each part

    @property
    def passes(self) -> int:
        return self.parts * self.pieces


def parting(
    n_sequences: int,
    n_rows: int,
    n_stages: int,
    n_sharing: int = 1,
    *,
    in_pieces: bool = True,
    widens: bool = False,
    n_parts: int | None = None,
) -> Parting:
    """Of a batch of n_rows rows through n_stages stages, each of n_sharing ranks, what is soonest through.

    in_pieces: sequences can be cut. widens: weights are made float32 in every pass. n_parts: so many parts.
    """
    if n_sharing > 1:
        return Parting(n_parts or min(n_sequences, _PASSES_PER_STAGE * n_stages) or 1, 1)
    beside = _ROWS_OF_WIDENING if widens else ROWS_OF_A_PASS

    def turns(way: Parting) -> float:
        """(passes + n_stages - 1) turns of a stage, each of the rows of the largest part's pieces and `beside`."""
        largest = n_rows * -(-n_sequences // way.parts) / max(n_sequences, 1)
        return (way.passes + n_stages - 1) * (largest / way.pieces + beside)

    ways = []
    for parts in range(1, max(1, n_sequences) + 1) if n_parts is None else (n_parts,):
        root = ((n_stages - 1) * n_rows / beside) ** 0.5 / parts if in_pieces else 1
        ways += [Parting(parts, max(1, pieces)) for pieces in (floor(root), ceil(root))]
    least = min(map(turns, ways))
    return max(way for way in ways if turns(way) <= _NEAR * least)


def hop_seconds(rows: int, width: int, handed: str, network: Network) -> float:
    """Of the rows that a rank hands on: int8 has a scale a row."""
    n_bytes = rows * (width * HANDED[handed] + (4 if handed == "int8" else 0))
    return 8 * n_bytes / network.bandwidth_bps + network.rtt_s / 2
