"""Predicted seconds of a forward pass: the counts of `costs.py` over measured or assumed speeds (docs/planner.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from astra_mpi.work import Cost, RankWork, Stage, Transfer, Work

#: which bytes an exchange is charged for
ACCOUNTINGS = ("contributed", "port", "paper")
_KINDS = ("gemm", "attention", "encode", "table", "elements")
#: speeds of the other kernels over that of GEMM, in the units of `Speeds`; medians of `doctor` on x86-64 with AVX2
_OVER_GEMM = {"attention": 0.66, "encode": 0.9, "table": 0.14, "elements": 0.02}
_BLOCK_S = 1e-4
#: bandwidths between which a break-even is looked for
_LOWEST_BPS, _HIGHEST_BPS = 1.0, 1e15


@dataclass(frozen=True)
class Speeds:
    """What one rank does per second, by kind of work (see `Work`)."""

    gemm: float  # multiply-adds
    attention: float  # multiply-adds
    encode: float  # multiply-adds
    table: float  # float32 numbers
    elements: float  # float32 numbers
    block_s: float  # seconds that a block costs whatever its size

    def seconds(self, work: Work) -> float:
        return sum(getattr(work, kind) / getattr(self, kind) for kind in _KINDS) + work.blocks * self.block_s

    def times(self, factor: float) -> Speeds:
        """The speeds of a rank `factor` times as fast."""
        return Speeds(**{kind: getattr(self, kind) * factor for kind in _KINDS}, block_s=self.block_s / factor)


def assumed_speeds(gflops: float) -> Speeds:
    """Of a rank whose float32 GEMM does `gflops` 10^9 floating-point operations per second, two to a multiply-add."""
    gemm = gflops * 1e9 / 2
    return Speeds(gemm, **{kind: ratio * gemm for kind, ratio in _OVER_GEMM.items()}, block_s=_BLOCK_S)


class Network(NamedTuple):
    """Ports of this bandwidth to one switch."""

    bandwidth_bps: float
    rtt_s: float


class Latency(NamedTuple):
    """Seconds of a forward pass."""

    total: float
    compute: float  # of the slowest rank, stage by stage
    wait: float  # for exchanges, beyond what local work hides


def latency(cost: Cost, speeds: Sequence[Speeds], network: Network, accounting: str = "port") -> Latency:
    """Predicted latency of a strategy on ranks of these speeds (P,).

    port, contributed: the exchange runs while a rank does what needs nothing of the others, and only the excess is
    waited for. paper: compute, then the exchange.
    """
    total = compute = 0.0
    for stage in cost.stages:
        total += stage.repeats * _stage_s(stage, speeds, network, accounting)
        compute += stage.repeats * max(s.seconds(rank.total) for s, rank in zip(speeds, stage.ranks, strict=True))
    if cost.closing_bytes and accounting != "paper":
        closing = Transfer("reduce", (cost.closing_bytes,) * len(speeds), 0)
        total += transfer_s(closing, network, accounting)
    return Latency(total, compute, total - compute)


def _stage_s(stage: Stage, speeds: Sequence[Speeds], network: Network, accounting: str) -> float:
    exchange_s = transfer_s(stage.transfer, network, accounting) if stage.transfer else 0.0
    times = [_seconds(s, rank) for s, rank in zip(speeds, stage.ranks, strict=True)]
    if accounting == "paper" or stage.transfer is None:
        return max(map(sum, times)) + exchange_s
    arrived_s = max(before for before, _, _ in times) + exchange_s
    return max(max(before + during, arrived_s) + after for before, during, after in times)


def _seconds(speeds: Speeds, rank: RankWork) -> tuple[float, float, float]:
    return speeds.seconds(rank.before), speeds.seconds(rank.during), speeds.seconds(rank.after)


def transfer_s(transfer: Transfer, network: Network, accounting: str) -> float:
    """Seconds of one exchange, from the last rank's start to the last arrival.

    port: through a switch every rank receives all other messages and sends its own P - 1 times; an all-reduce is a
    ring of 2 (P - 1) steps. contributed: as if every rank's bytes had to pass once. paper: one local payload, and no
    latency of the network.
    """
    if accounting == "paper":
        return transfer.paper_bits / network.bandwidth_bps
    size, largest = len(transfer.contributed), max(transfer.contributed)
    gathers = transfer.kind == "gather"
    if accounting == "contributed":
        n_bytes: float = largest
    elif gathers:
        received = sum(transfer.contributed) - min(transfer.contributed)
        n_bytes = max(received, (size - 1) * largest)
    else:
        n_bytes = 2 * (size - 1) / size * largest
    if n_bytes == 0:
        return 0.0
    steps = 1 if gathers else 2 * (size - 1)
    return 8 * n_bytes / network.bandwidth_bps + steps * network.rtt_s / 2


def break_even_bps(latency_s: Callable[[float], float], limit_s: float) -> float | None:
    """Bandwidth above which `latency_s` (bandwidth -> seconds, falling) is below `limit_s`; 0: any; None: none is."""
    low, high = _LOWEST_BPS, _HIGHEST_BPS
    if latency_s(high) >= limit_s:
        return None
    if latency_s(low) < limit_s:
        return 0.0
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if latency_s(middle) < limit_s else (middle, high)
    return high
