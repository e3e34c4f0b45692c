"""What grids of ranks take, for one input now and for a job of many, under the memory of each rank
(docs/explanation/grid.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from astra_mpi import partition
from astra_mpi.codec.config import CodecConfig
from astra_mpi.config import require
from astra_mpi.costs.latency import Speeds, latency
from astra_mpi.costs.setting import Setting
from astra_mpi.costs.stages import (
    ROWS_OF_A_PASS,
    Ends,
    block_weights,
    ends_of,
    hop_seconds,
    outside_weights,
    parting,
    stage_seconds,
)
from astra_mpi.costs.strategies import STRATEGIES, Coding
from astra_mpi.costs.work import Cost, Job
from astra_mpi.errors import InputError
from astra_mpi.models import FAMILIES
from astra_mpi.planner.measured import measured, same_codes
from astra_mpi.planner.plan import BY_TOKENS, cheaper_remote
from astra_mpi.ranks.grid import Grid


@dataclass(frozen=True)
class Way:
    """A strategy of the ranks that share tokens."""

    strategy: str
    coding: Coding
    cost: Cost  # of all blocks
    counts: tuple[int, ...]  # tokens per rank


@dataclass(frozen=True)
class Room:
    """The memory of each rank in bytes; None: any."""

    limits: tuple[float, ...] | None

    def least(self, ranks: Sequence[int]) -> float:
        """Of some ranks the smallest."""
        return float("inf") if self.limits is None else min(self.limits[r] for r in ranks)


class Short(NamedTuple):
    """What the stages of a replica need together, and what their smallest ranks have together, in bytes."""

    needed: float
    there: float


class Search:
    """All grids of a setting's ranks."""

    def __init__(self, setting: Setting, room: Room, handed: str = "float16") -> None:
        require(
            room.limits is None or len(room.limits) == setting.size,
            f"--memory has {len(room.limits or ())} numbers for {setting.size} ranks; give one, or one per rank",
        )
        self.setting, self.room, self.handed = setting, room, handed
        self.config, self.shape = setting.config, setting.shape
        self._ways: dict[tuple[int, int], list[Way]] = {}
        self._seconds: dict[Any, list[float]] = {}

    @cached_property
    def ends(self) -> Ends:
        return ends_of(self.config)

    @cached_property
    def codings(self) -> list[Coding]:
        """The setting's own codec, and the others of which something was measured."""
        others = [
            figure.coding(self.config.d_model)
            for figure in measured(self.config.family, self.config.n_layers).figures
            if self._is_other(figure.codec)
        ]
        return [self.setting.coding, *(cheaper_remote(self.setting, coding) for coding in others)]

    def _is_other(self, codec: CodecConfig) -> bool:
        own = self.setting.coding.codec
        return not same_codes(codec, own) and codec.bits_per_token <= own.bits_per_token

    def grids(self) -> Iterator[Grid]:
        size = self.setting.size
        for replicas in _divisors(size):
            for stages in _divisors(size // replicas):
                if stages <= self.config.n_layers:
                    yield Grid(replicas, stages, size // replicas // stages)

    def ways(self, n_ranks: int, batch: int) -> list[Way]:
        """What ranks that share tokens can do, for a batch of so many sequences."""
        key = n_ranks, batch
        if key not in self._ways:
            counts = tuple(int(n) for n in partition.even(self.setting.tokens, n_ranks))
            job = Job(self.shape, counts, batch, self.setting.kept_bytes)
            self._ways[key] = list(self._made(job))
        return self._ways[key]

    def _made(self, job: Job) -> Iterator[Way]:
        for strategy, make in STRATEGIES.items():
            name = strategy.split(":")[0]
            if name == "bp" or (name == "single") != (job.size == 1):
                continue
            for coding in self.codings if name == "astra" else self.codings[:1]:
                try:
                    yield Way(strategy, coding, make(job, coding), job.counts)
                except InputError:
                    break

    def rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """-> (what can be run, what does not fit)."""
        found, misfits = [], []
        for grid in self.grids():
            short: Short | None = None
            for now, many in zip(
                self.ways(grid.tokens, self._batch(grid)), self.ways(grid.tokens, self.setting.batch), strict=True
            ):
                row = self._row(grid, now, many)
                if isinstance(row, Short):
                    short = min(short or row, row)
                else:
                    found.append(row)
            if short and not any(row["grid"] == str(grid) for row in found):
                needed, there = short.needed / 1e9, short.there / 1e9
                why = f"a replica needs {needed:.3g} GB over its stages, and has {there:.3g} GB"
                misfits.append({"grid": str(grid), "needed_bytes": int(short.needed), "why": why})
        return found, misfits

    def _batch(self, grid: Grid) -> int:
        """Sequences of one batch that a replica gets of it, all at once or in turn through its stages."""
        return 1 if grid.stages > 1 else -(-self.setting.batch // grid.replicas)

    def _row(self, grid: Grid, now: Way, many: Way) -> dict[str, Any] | Short:
        latencies, rates, blocks, memory = [], [], [], [0.0] * grid.size
        share = -(-self.setting.batch // grid.replicas)
        for replica in range(grid.replicas):
            ranks = grid.ranks_of(replica)
            speeds = self.setting.speeds[ranks.start : ranks.stop]
            cut = self._cut(grid, ranks, speeds, many)
            if isinstance(cut, Short):
                return cut
            counts, held = cut
            blocks.append(counts)
            memory[ranks.start : ranks.stop] = held
            if grid.stages == 1:
                latencies.append(self._pass_s(now, speeds))
                rates.append(self.setting.batch / self._pass_s(many, speeds))
                continue
            one = self.ways(grid.tokens, 1)[self.ways(grid.tokens, self.setting.batch).index(many)]
            seconds = self._stages_s(one, speeds, counts)
            hop_s = hop_seconds(self._handed_rows(one), self.config.d_model, self.handed, self.setting.network)
            latencies.append(self._through_stages_s(seconds, hop_s, share, grid))
            rates.append(1 / max(*seconds, hop_s))
        codec = many.coding.codec if many.strategy.startswith("astra") else None
        return {
            "grid": str(grid),
            "strategy": many.strategy,
            "codec": None if codec is None else codec.as_dict(),
            "bits_per_token_per_block": None if codec is None else codec.mean_bits(self.config.n_layers),
            "exact": many.cost.exact and (grid.stages == 1 or self.handed == "float32"),
            "latency_s": max(latencies[: self.setting.batch]),
            "sequences_per_s": self._through(grid, sum(rates)),
            "blocks": blocks[0] if grid.stages > 1 else None,
            "memory_bytes": [int(n) for n in memory],
        }

    def _through_stages_s(self, seconds: Sequence[float], hop_s: float, n_sequences: int, grid: Grid) -> float:
        """Of sequences, one after another or in pieces: seconds of each stage and of a hop for a whole one."""
        n, more = n_sequences, 0.0
        if grid.tokens == 1 and FAMILIES[self.config.family].causal:
            n_rows = n_sequences * self.setting.tokens
            n = min(parting(n_sequences, n_rows, grid.stages).passes, n_rows)
            more = ROWS_OF_A_PASS * n / n_rows
        turns = [s * n_sequences / n * (1 + more) for s in seconds]
        hop_s *= n_sequences / n
        return sum(turns) + (grid.stages - 1) * hop_s + (n - 1) * max(*turns, hop_s)

    def _rows(self, way: Way) -> int:
        return max(way.counts) + self.shape.n_class

    def _handed_rows(self, way: Way) -> int:
        """Of a rank, to the next stage: where codes begin anew there, to all its ranks, and with them what entered the
        first block if they predict from that."""
        codec, n = way.coding.codec, len(way.counts)
        to_all = codec.has_maps and way.strategy.startswith("astra") and n > 1
        return self._rows(way) * n * (1 + (codec.inputs > 0)) if to_all else self._rows(way)

    def _through(self, grid: Grid, rate: float) -> float:
        """Sequences per second that rank 0's port lets out to the other replicas, at most."""
        if grid.replicas == 1:
            return rate
        config: Any = self.config
        pixels = config.channels * config.image_size[0] * config.image_size[1] if config.family == "vit" else 0
        n_bytes = 4 * (pixels or self.setting.tokens)
        port = self.setting.network.bandwidth_bps / 8 / n_bytes * grid.replicas / (grid.replicas - 1)
        return min(rate, port)

    def _pass_s(self, way: Way, speeds: Sequence[Speeds]) -> float:
        return self._kept(("pass", id(way), tuple(speeds)), lambda: [self._latency(way, speeds)])[0]

    def _latency(self, way: Way, speeds: Sequence[Speeds]) -> float:
        return latency(way.cost, speeds, self.setting.network).total

    def _stages_s(self, way: Way, speeds: Sequence[Speeds], counts: list[int]) -> list[float]:
        key = "stages", id(way), tuple(speeds), tuple(counts)
        return self._kept(key, lambda: stage_seconds(way.cost, speeds, self.setting.network, counts))

    def _kept(self, key: Any, make: Any) -> list[float]:
        if key not in self._seconds:
            self._seconds[key] = make()
        return self._seconds[key]

    def _cut(
        self, grid: Grid, ranks: range, speeds: Sequence[Speeds], way: Way
    ) -> tuple[list[int], list[float]] | Short:
        """Blocks of each stage of a replica, and the bytes of each of its ranks."""
        n, groups = grid.tokens, [ranks[s * grid.tokens : (s + 1) * grid.tokens] for s in range(grid.stages)]
        fast = [min(one.gemm for one in speeds[s * n : (s + 1) * n]) for s in range(grid.stages)]
        each = self._block_bytes(way)
        best, lack = None, 0.0
        for head in dict.fromkeys((grid.stages - 1, 0)):  # where there is room
            fixed = [
                self.setting.weight_bytes * outside + self._passing_bytes(way)
                for outside in outside_weights(self.ends, grid.stages, head)
            ]
            room = [self.room.least(group) for group in groups]
            most = [_most(limit - rest, each, self.config.n_layers) for limit, rest in zip(room, fixed, strict=True)]
            counts = partition.split_blocks(self.config.n_layers, fast, most)
            wanted = sum(fixed) + each * self.config.n_layers
            lack = min(lack or wanted, wanted)
            if counts is None:
                continue
            held = [rest + each * count for rest, count in zip(fixed, counts, strict=True) for _ in range(n)]
            worst = max(count / speed for count, speed in zip(counts, fast, strict=True))
            if best is None or worst < best[0]:
                best = worst, counts, held
        if best is None:
            return Short(lack, sum(self.room.least(group) for group in groups))
        return best[1], best[2]

    def _block_bytes(self, way: Way) -> float:
        weights = way.cost.block_share * self.setting.weight_bytes * block_weights(self.shape)
        return weights + way.cost.table_bytes / self.config.n_layers

    def _passing_bytes(self, way: Way) -> float:
        """Of activations in a pass."""
        config, batch = self.config, self.setting.batch
        by_tokens = way.strategy.split(":")[0] in BY_TOKENS
        rows = self.shape.n_class + (max(way.counts) if by_tokens else self.setting.tokens)
        far = self.setting.tokens - min(way.counts) if by_tokens else 0
        return 4 * batch * (rows * (6 * config.d_model + 2 * config.d_kv + config.d_ff) + far * 2 * config.d_kv)


def _most(room: float, each: float, n_layers: int) -> int:
    return n_layers if room == float("inf") else max(0, min(n_layers, int(room // max(each, 1.0)))) if room >= 0 else 0


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
