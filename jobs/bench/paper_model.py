"""Speed-ups of the published schemes from the cost model, calibrated by INPUTS; paper_tables.py shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from astra_mpi.codec.config import CodecConfig
from astra_mpi.config import ModelConfig
from astra_mpi.costs.latency import Network, Speeds, latency, transfer_s
from astra_mpi.costs.strategies import STRATEGIES
from astra_mpi.costs.wires import Coding
from astra_mpi.costs.work import Job, shape_of
from astra_mpi.errors import InputError
from astra_mpi.measure.published import PUBLISHED
from astra_mpi.network.units import bandwidth_bps
from astra_mpi.partition import even

MODEL = ModelConfig(768, 12, 12, 12, 3072, "gelu", 1e-12)
#: one_device_s: published latency of one device at 1024 tokens, the only input of "counts". The others are those of
#: "fitted", chosen so that the published curves over ranks and tokens come out, which no count gives: time of a
#: multiply-add in attention over one in a linear layer, and what quantising costs a block beside its multiply-adds
INPUTS = {"one_device_s": 0.117, "attention_factor": 10, "astra_block_s": 0.5e-3}


@dataclass(frozen=True)
class Scheme:
    """One line of the published figures, or one of this project's own."""

    strategy: str
    coding: Coding = field(default_factory=Coding)


def _paper(groups: int) -> Scheme:
    """As published: K = 1024, exact search, keys and values of far tokens by GEMM."""
    return Scheme("astra", Coding(CodecConfig(kind="grouped", groups=groups, codebook_size=1024), remote="gemm"))


SCHEMES = {
    "ASTRA G=1": _paper(1),
    "ASTRA G=16": _paper(16),
    "ASTRA G=32": _paper(32),
    "BP+AG Nb=1": Scheme("bp"),
    "BP+SP Nb=1": Scheme("bp:sp"),
    "SP": Scheme("sp"),
    "TP": Scheme("tp"),
    "sp:int8": Scheme("sp:int8"),
    "segment_means:8": Scheme("segment_means:8"),
    "astra M=4 K=256, tables": Scheme("astra"),
}


@dataclass(frozen=True)
class Point:
    """Where a speed-up is asked for."""

    ranks: int
    tokens: int
    mbps: float


@dataclass(frozen=True)
class Calibration:
    """Seconds per multiply-add in linear layers, and what attention and quantising cost beside their counts."""

    gemm_s: float
    attention_factor: float = 1.0
    astra_block_s: float = 0.0

    def speeds(self, scheme: Scheme) -> Speeds:
        one = 1 / self.gemm_s
        block_s = self.astra_block_s if scheme.strategy == "astra" else 0.0
        return Speeds(one, one / self.attention_factor, one, one, inf, inf, block_s)

    def speedup(self, scheme: Scheme, at: Point, accounting: str, rtt_s: float = 0.0) -> float:
        """Of compute followed by the block exchanges, nothing hidden, over one device."""
        return self._seconds(Scheme("single"), 1, at, accounting, rtt_s) / self._seconds(
            scheme, at.ranks, at, accounting, rtt_s
        )

    def _seconds(self, scheme: Scheme, ranks: int, at: Point, accounting: str, rtt_s: float) -> float:
        job = Job(shape_of(MODEL), tuple(int(n) for n in even(at.tokens, ranks)))
        cost = STRATEGIES[scheme.strategy](job, scheme.coding)
        network = Network(at.mbps * 1e6, rtt_s)
        sent = [(s.repeats, s.transfer) for s in cost.stages if s.transfer]
        exchange_s = sum(n * transfer_s(transfer, network, accounting) for n, transfer in sent)
        return latency(cost, (self.speeds(scheme),) * ranks, network, "paper").compute + exchange_s


def calibrate(one_device_s: float, attention_factor: float = 1.0, astra_block_s: float = 0.0) -> Calibration:
    """So that one device takes `one_device_s` for 1024 tokens."""
    unit = Calibration(1.0, attention_factor)
    seconds = unit._seconds(Scheme("single"), 1, Point(1, 1024, inf), "paper", 0.0)
    return Calibration(one_device_s / seconds, attention_factor, astra_block_s)


def points(sweep: str, published: dict[str, Any]) -> list[Point]:
    """The points of a sweep."""
    fixed = {"ranks": published.get("ranks"), "tokens": published.get("tokens"), "mbps": published.get("mbps")}
    moving = "mbps" if sweep == "bandwidth" else sweep
    return [Point(**fixed | {moving: value}) for value in published["at"]]


def measured_speedups(paths: list[str]) -> dict[tuple[str, Point], float]:
    """(scheme, point) -> speed-up over `single` of the same file, from runs of bench under the virtual clock."""
    found = {}
    for path in paths:
        try:
            runs = [run for run in json.loads(Path(path).read_text())["runs"] if run.get("clock") == "virtual"]
            alone = {_condition(run): run["latency_s"]["total"] for run in runs if run["strategy"] == "single"}
            for run in runs:
                scheme, condition = _scheme(run), _condition(run)
                if scheme is not None and condition in alone:
                    found[scheme, condition] = alone[condition] / run["latency_s"]["total"]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise InputError(f"{path} is no file of `astra-mpi bench --json` ({type(exc).__name__}: {exc})") from exc
    return found


def _condition(run: dict[str, Any]) -> Point:
    bps = inf if run["network"] == "real" else bandwidth_bps(run["network"].split(",")[0])
    return Point(run["ranks"], max(run["tokens"]), bps / 1e6)


def _scheme(run: dict[str, Any]) -> str | None:
    keys = ("kind", "groups", "stages", "codebook_size")
    for name, scheme in SCHEMES.items():
        codec = scheme.coding.codec.as_dict()
        if run["strategy"] == scheme.strategy and (
            scheme.strategy != "astra" or all(run["codec"][key] == codec[key] for key in keys)
        ):
            return name
    return None


def table(sweep: str, rtt_s: float, measured: dict[tuple[str, Point], float]) -> dict[str, Any]:
    """scheme -> row name -> values at the points of a sweep, None where there is none."""
    published = PUBLISHED[sweep]
    counts, fitted = calibrate(INPUTS["one_device_s"]), calibrate(**INPUTS)
    at = points(sweep, published)
    ways: dict[str, Callable[[Scheme, Point], float]] = {
        "counts": lambda scheme, point: counts.speedup(scheme, point, "paper"),
        "fitted": lambda scheme, point: fitted.speedup(scheme, point, "paper"),
        "switch": lambda scheme, point: fitted.speedup(scheme, point, "port", rtt_s),
    }
    rows = {}
    for name, scheme in SCHEMES.items():
        values: dict[str, list[float | None]] = {"published": published["speedup"].get(name, [None] * len(at))}
        for way, speedup in ways.items():
            values[way] = [_or_none(speedup, scheme, point) for point in at]
        values["virtual clock"] = [measured.get((name, point)) for point in at]
        rows[name] = values
    return {"at": published["at"], "rows": rows}


def _or_none(speedup: Callable[[Scheme, Point], float], scheme: Scheme, point: Point) -> float | None:
    """None where the ranks cannot share the heads, which `tp` and `bp` need."""
    try:
        return speedup(scheme, point)
    except InputError:
        return None


def deviations(tables: dict[str, Any], way: str) -> list[tuple[float, str]]:
    """Relative deviation from the published figure and where, of every cell that has one."""
    return [
        (ours / theirs - 1, f"{scheme}, {sweep} {at}")
        for sweep, one in tables.items()
        for scheme, rows in one["rows"].items()
        for at, theirs, ours in zip(one["at"], rows["published"], rows[way], strict=True)
        if theirs is not None
    ]
