"""What is planned for: a model, a sequence, ranks, links and codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from astra_mpi import partition
from astra_mpi.config import ModelConfig
from astra_mpi.costs.decode import Decode
from astra_mpi.costs.latency import Network, Speeds, transfer_s
from astra_mpi.costs.wires import Coding
from astra_mpi.costs.work import Job, Shape, shape_of


@dataclass(frozen=True)
class Setting:
    """What is planned for."""

    config: ModelConfig
    tokens: int  # T, content tokens of a sequence
    speeds: tuple[Speeds, ...]  # (P,)
    network: Network
    batch: int = 1
    coding: Coding = field(default_factory=Coding)
    weight_bytes: float = 4.0  # of a weight of a block, in memory
    kept_bytes: float = 4.0  # of a number of the keys and values that decoding keeps

    @property
    def size(self) -> int:
        return len(self.speeds)

    @property
    def shape(self) -> Shape:
        return shape_of(self.config)

    @property
    def even(self) -> list[int]:
        """The even cut of a sequence."""
        return [int(n) for n in partition.even(self.tokens, self.size)]

    def job(self, counts: Sequence[int]) -> Job:
        return Job(self.shape, tuple(counts), self.batch, self.kept_bytes)


def compute_seconds(setting: Setting, step: Decode) -> float:
    """Of the slowest rank."""
    return max(speeds.seconds(work) for speeds, work in zip(setting.speeds, step.ranks, strict=True))


def wait_seconds(step: Decode, network: Network) -> float:
    """Nothing hides an exchange: a token's next block needs what it brings."""
    return sum(n * transfer_s(transfer, network, "port") for n, transfer in step.transfers)


def step_seconds(setting: Setting, step: Decode) -> float:
    """One token of every sequence."""
    return compute_seconds(setting, step) + wait_seconds(step, setting.network)
