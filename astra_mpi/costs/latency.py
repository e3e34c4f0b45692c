"""Predicted seconds of a pass: counts of `costs.py` over measured or assumed speeds (docs/explanation/planner.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

from astra_mpi.costs.work import Cost, RankWork, Transfer, Work
from astra_mpi.partition import hears

#: which bytes an exchange is charged for
ACCOUNTINGS = ("contributed", "port", "paper")
_KINDS = ("gemm", "attention", "encode", "table", "elements", "stream")
#: speeds of the other kernels over that of GEMM, in the units of `Speeds`; from `doctor` on one core of an x86-64
#: server CPU with AVX2, rounded
_OVER_GEMM = {"attention": 0.75, "encode": 0.9, "states": 0.5, "table": 0.15, "elements": 0.08, "stream": 0.1}
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
    stream: float  # float32 numbers
    block_s: float  # seconds that a block costs whatever its size
    weights: float | None = None  # weights as they are kept; None: as `stream`
    states: float | None = None  # multiply-adds of predictions; None: as `encode`

    def seconds(self, work: Work) -> float:
        products = work.gemm / self.gemm + work.attention / self.attention + work.encode / self.encode
        products += work.states / (self.states or self.encode)
        numbers = work.table / self.table + work.elements / self.elements + work.stream / self.stream
        return products + numbers + work.weights / (self.weights or self.stream) + work.blocks * self.block_s

    def times(self, factor: float) -> Speeds:
        """The speeds of a rank `factor` times as fast."""
        kinds = {kind: getattr(self, kind) * factor for kind in _KINDS}
        weights, states = (None if speed is None else speed * factor for speed in (self.weights, self.states))
        return Speeds(**kinds, block_s=self.block_s / factor, weights=weights, states=states)


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


class _Lap(NamedTuple):
    """A stage in seconds: per rank before, during and after the exchange."""

    repeats: int
    times: list[tuple[float, float, float]]
    transfer: Transfer | None


def latency(cost: Cost, speeds: Sequence[Speeds], network: Network, accounting: str = "port") -> Latency:
    """Predicted latency of a strategy on ranks of these speeds (P,).

    port, contributed: the exchange runs while a rank does what needs nothing of the others, and only the excess is
    waited for; where messages go forward only, a rank also works ahead of those behind it. paper: compute, then the
    exchange.
    """
    laps = _laps(cost, speeds)
    compute = sum(lap.repeats * max(map(sum, lap.times)) for lap in laps)
    total = _total_s(laps, network, accounting)
    return Latency(total, compute, total - compute)


def in_turns(costs: Sequence[Cost], speeds: Sequence[Speeds], network: Network, accounting: str = "port") -> Latency:
    """Of parts of a batch, whose passes take turns on every rank and end together; not for the accounting "paper", in
    which nothing is hidden."""
    passes = [_laps(replace(cost, closing_bytes=0), speeds) for cost in costs]
    closing = Transfer("close", (sum(cost.closing_bytes for cost in costs),) * len(speeds), 0.0)
    compute = sum(lap.repeats * max(map(sum, lap.times)) for laps in passes for lap in laps)
    total = _in_turn_s(passes, network, accounting) + transfer_s(closing, network, accounting)
    return Latency(total, compute, total - compute)


def break_even_bps(cost: Cost, speeds: Sequence[Speeds], rtt_s: float, accounting: str, limit_s: float) -> float | None:
    """Bandwidth above which a strategy takes less than `limit_s`; 0: any bandwidth; None: none."""
    laps = _laps(cost, speeds)

    def below(bandwidth_bps: float) -> bool:
        return _total_s(laps, Network(bandwidth_bps, rtt_s), accounting) < limit_s

    low, high = _LOWEST_BPS, _HIGHEST_BPS
    if not below(high):
        return None
    if below(low):
        return 0.0
    for _ in range(40):  # to 10^-10
        middle = (low * high) ** 0.5
        low, high = (low, middle) if below(middle) else (middle, high)
    return high


def _laps(cost: Cost, speeds: Sequence[Speeds]) -> list[_Lap]:
    laps = [
        _Lap(stage.repeats, [_seconds(s, rank) for s, rank in zip(speeds, stage.ranks, strict=True)], stage.transfer)
        for stage in cost.stages
    ]
    if cost.closing_bytes:
        closing = Transfer("close", (cost.closing_bytes,) * len(speeds), 0.0)
        laps.append(_Lap(1, [(0.0, 0.0, 0.0)] * len(speeds), closing))
    return laps


def _seconds(speeds: Speeds, rank: RankWork) -> tuple[float, float, float]:
    return speeds.seconds(rank.before), speeds.seconds(rank.during), speeds.seconds(rank.after)


def _total_s(laps: Sequence[_Lap], network: Network, accounting: str) -> float:
    if accounting != "paper" and any(lap.transfer is not None and lap.transfer.late for lap in laps):
        return _in_turn_s([laps], network, accounting)
    return sum(
        _lap_s(lap, network, accounting) + (lap.repeats - 1) * _period_s(lap, network, accounting) for lap in laps
    )


def _in_turn_s(passes: Sequence[Sequence[_Lap]], network: Network, accounting: str) -> float:
    """Of passes that take turns on every rank, lap after lap, while what others have sent travels. Some messages are
    needed one lap later. Every rank's time is followed."""
    n_ranks, port_s = len(passes[0][0].times), 0.0
    now_s, none = [0.0] * n_ranks, [0.0] * n_ranks
    there_s, late_s, after_s = ([none] * len(passes) for _ in range(3))  # what each pass waits for, and does then
    laps = [chain.from_iterable([one] * one.repeats for one in each) for each in passes]
    for k, lap in chain.from_iterable(enumerate(turn) for turn in zip(*laps, strict=True)):
        now_s = _resumed(now_s, there_s[k], after_s[k])
        begin_s = [now + before for now, (before, _, _) in zip(now_s, lap.times, strict=True)]
        arrival_s = none
        if lap.transfer is not None:
            x_s = transfer_s(lap.transfer, network, accounting)
            heard = [begin_s[:rank] if lap.transfer.forward else begin_s for rank in range(n_ranks)]
            arrival_s = [max(*of_rank, port_s) + x_s if of_rank else 0.0 for of_rank in heard]
            port_s = max(*begin_s, port_s) + transfer_s(lap.transfer, network._replace(rtt_s=0.0), accounting)
        now_s = [begin + during for begin, (_, during, _) in zip(begin_s, lap.times, strict=True)]
        if lap.transfer is not None and lap.transfer.late:
            there_s[k], late_s[k] = late_s[k], arrival_s
        else:
            there_s[k], late_s[k] = [max(pair) for pair in zip(arrival_s, late_s[k], strict=True)], none
        after_s[k] = [after for _, _, after in lap.times]
    for there, after in zip(there_s, after_s, strict=True):
        now_s = _resumed(now_s, there, after)
    return max(now_s)


def _resumed(now_s: list[float], there_s: list[float], after_s: list[float]) -> list[float]:
    return [max(now, there) + after for now, there, after in zip(now_s, there_s, after_s, strict=True)]


def _period_s(lap: _Lap, network: Network, accounting: str) -> float:
    """Of one more lap. Where messages go forward only, the first ranks run ahead: the slowest rank or port counts."""
    if accounting == "paper" or lap.transfer is None or not lap.transfer.forward:
        return _lap_s(lap, network, accounting)
    return max(*map(sum, lap.times), transfer_s(lap.transfer, network._replace(rtt_s=0.0), accounting), 0.0)


def _lap_s(lap: _Lap, network: Network, accounting: str) -> float:
    exchange_s = transfer_s(lap.transfer, network, accounting) if lap.transfer else 0.0
    if accounting == "paper" or lap.transfer is None:
        return max(map(sum, lap.times)) + exchange_s
    arrived_s = max(before for before, _, _ in lap.times) + exchange_s
    return max(max(before + during, arrived_s) + after for before, during, after in lap.times)


def _through_a_port(transfer: Transfer, size: int) -> float:
    """Bytes of an all-gather that the busiest port takes in or puts out."""
    sent = transfer.contributed
    if isinstance(transfer.heard, bool):
        return max(sum(sent) - min(sent), (size - 1) * max(sent))
    copies = [sum(hears(receiver, sender, transfer.heard) for receiver in range(size)) for sender in range(size)]
    received = (sum(sent[sender] for sender in heard) for heard in transfer.heard)
    return max(max(received), max(n * count for n, count in zip(sent, copies, strict=True)))


def transfer_s(transfer: Transfer, network: Network, accounting: str) -> float:
    """Seconds of one exchange, from the last rank's start to the last arrival.

    port: through a switch every rank receives all other messages and sends its own P - 1 times; an all-reduce is a
    ring of 2 (P - 1) steps. contributed: as if every rank's bytes had to pass once. paper: one local payload, and no
    latency of the network.
    """
    if accounting == "paper":
        return transfer.paper_bits / network.bandwidth_bps
    size, largest = len(transfer.contributed), max(transfer.contributed)
    gathered: float = largest
    reduced: float = largest
    if accounting == "port":
        gathered, reduced = _through_a_port(transfer, size), 2 * (size - 1) / size * largest
    if largest == 0 or gathered == 0:
        return 0.0
    ways = {"gather": [(gathered, 1)], "reduce": [(reduced, 2 * (size - 1))], "close": [(gathered, 1), (reduced, 2)]}
    return min(8 * n_bytes / network.bandwidth_bps + hops * network.rtt_s / 2 for n_bytes, hops in ways[transfer.kind])


#: GFLOP/s of float32 GEMM on one core of a server CPU, where nothing was measured
ASSUMED_GFLOPS = 50.0
