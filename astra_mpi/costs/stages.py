"""What stages of blocks cost: what each holds, and what it hands on (docs/explanation/grid.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod, sqrt
from typing import NamedTuple

from astra_mpi.config import ModelConfig
from astra_mpi.costs.latency import Network, Speeds, latency
from astra_mpi.costs.work import Cost, Shape
from astra_mpi.models import FAMILIES
from astra_mpi.models.recipe import block_shapes

#: bytes of a number that is handed on
HANDED = {"float32": 4.0, "float16": 2.0, "int8": 1.0}


#: rows that take as long as what a pass takes beside its rows: reading weights, calls
ROWS_OF_A_PASS = 20.0
#: the same where narrow weights are made float32 in every pass
_ROWS_OF_WIDENING = 400.0
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


def n_passes(n_rows: int, n_stages: int, n_sharing: int, widens: bool = False) -> int:
    """Of n_rows rows through n_stages stages, each of n_sharing ranks. widens: weights are made float32 in every pass.

    n equal passes take (n + n_stages - 1) turns of a stage, each of n_rows / n + ROWS_OF_A_PASS.
    """
    if n_sharing > 1:
        return _PASSES_PER_STAGE * n_stages
    return max(1, round(sqrt((n_stages - 1) * n_rows / (_ROWS_OF_WIDENING if widens else ROWS_OF_A_PASS))))


def hop_seconds(rows: int, width: int, handed: str, network: Network) -> float:
    """Of the rows that a rank hands on: int8 has a scale a row."""
    n_bytes = rows * (width * HANDED[handed] + (4 if handed == "int8" else 0))
    return 8 * n_bytes / network.bandwidth_bps + network.rtt_s / 2
