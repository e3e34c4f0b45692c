"""Measured runs as `astra-mpi bench --json` and `astra-mpi sweep` write them, read back and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path, PurePath
from reprlib import repr
from typing import Any, NamedTuple

from astra_mpi.codec.config import KINDS
from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.network.units import bandwidth_bps


class Condition(NamedTuple):
    """What runs must share to be compared."""

    model: str
    batch: int
    tokens: int  # of the longest sequence
    ranks: int
    network: str  # as given
    accounting: str
    clock: str
    compute: str = "float32"  # the type of products: of a CPU `compute`, of a GPU `precision`


@dataclass(frozen=True)
class Run:
    at: Condition
    name: str  # the strategy, with its codec where it has one
    codec: dict[str, Any]  # empty without one
    total_s: float
    wait_s: float
    phases_s: dict[str, float]  # they add up to total_s
    speedup: float | None  # over `single` under the same condition, where that was measured
    quartiles_s: tuple[float, ...]
    contributed_bytes: int  # of all ranks
    port_bytes: int  # of the busiest port
    distinct_keys: float | None
    counted_keys: bool | None  # None where there are no codes

    @property
    def strategy(self) -> str:
        return self.name.split(" ")[0]

    @property
    def mbps(self) -> float | None:
        """Bandwidth of the emulated network; None for the real one and for traces."""
        try:
            return bandwidth_bps(self.at.network.split(",")[0]) / 1e6
        except InputError:
            return None

    @property
    def link(self) -> str:
        """The network but for its bandwidth."""
        return self.at.network.partition(",")[2] if self.mbps else self.at.network


@dataclass(frozen=True)
class Measured:
    runs: tuple[Run, ...]
    failures: tuple[tuple[str, str], ...]  # which point, and the sentence it failed with
    hosts: tuple[str, ...]  # machine and versions, each in one line


def read_runs(paths: Sequence[Path]) -> Measured:
    """InputError, one sentence with the file's name, on anything that is no such file or holds nothing."""
    parts = [_read(path) for path in paths]
    return Measured(
        tuple(run for part in parts for run in part.runs),
        tuple(failure for part in parts for failure in part.failures),
        tuple(dict.fromkeys(host for part in parts for host in part.hosts)),
    )


def _read(path: Path) -> Measured:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputError(f"{path} cannot be read ({exc.strerror}); check the path") from exc
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{path} is not valid JSON ({exc}); give what bench --json or sweep wrote") from exc
    try:
        require(isinstance(values, dict) and isinstance(values.get("runs"), list), "it has no list of runs")
        failures = tuple(_failure(one) for one in values.get("failures", []))
        runs = tuple(_runs(values["runs"]))
        hosts = tuple(_host(one) for one in values.get("hosts") or [values])
    except (InputError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as exc:
        reason = f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)
        raise InputError(f"{path} is no file of `astra-mpi bench --json` or `astra-mpi sweep`: {reason}") from exc
    require(bool(runs or failures), f"{path} holds no runs; measure some with astra-mpi bench or sweep")
    return Measured(runs, failures, hosts)


def _runs(values: list[dict[str, Any]]) -> Iterator[Run]:
    """The first strategy of a condition is what a bench's speed-ups are over."""
    first: dict[Condition, str] = {}
    for value in values:
        at = _condition(value)
        over = first.setdefault(at, value["strategy"])
        measured = value["spread"]["over_first"] if over == "single" else None
        yield _run(value, at, value.get("speedup", measured))


def _condition(value: dict[str, Any]) -> Condition:
    tokens = [_number(n) for n in value["tokens"]]
    require(bool(tokens), "a run has no tokens")
    model = value.get("model_name") or PurePath(_text(value.get("model", value["family"]))).name
    texts = (_text(value["network"]), _text(value["accounting"] or ""), _text(value["clock"]))
    compute = value["choices"].get("compute") or value["choices"].get("precision") or "float32"
    return Condition(_text(model), len(tokens), int(max(tokens)), int(_number(value["ranks"])), *texts, _text(compute))


def _run(value: dict[str, Any], at: Condition, speedup: Any) -> Run:
    latency, codec = value["latency_s"], value["codec"] or {}
    strategy, keys = _text(value["strategy"]), value.get("distinct_keys")
    label = value.get("codec_name") or codec_label(codec)
    return Run(
        at=at,
        name=f"{strategy} {_text(label)}" if label else strategy,
        codec=dict(codec),
        total_s=_number(latency["total"], above_zero=True),
        wait_s=_number(latency["exchange_wait"]),
        phases_s={_text(name): _number(seconds) for name, seconds in latency["phases"].items()},
        speedup=None if speedup is None else _number(speedup, above_zero=True),
        quartiles_s=tuple(_number(q) for q in value["spread"]["quartiles"]),
        contributed_bytes=int(sum(_number(n) for n in value["contributed_bytes"])),
        port_bytes=int(max(_number(n) for n in value["port_bytes"])),
        distinct_keys=None if keys is None else _number(keys),
        counted_keys=value["choices"].get("counted_keys"),
    )


def codec_label(codec: dict[str, Any]) -> str:
    """G=1 K=1024, or nothing."""
    if not codec:
        return ""
    kind, site = KINDS[codec["kind"]], codec["site"]
    words = [kind.label(codec) or kind.name, f"K={codec['codebook_size']}", site if site != "hidden" else ""]
    return " ".join(filter(None, words))


def _failure(value: dict[str, Any]) -> tuple[str, str]:
    names = [value["strategy"], value.get("codec_name"), value["network"], f"{value['ranks']} ranks"]
    names += [f"{value['tokens']} tokens"] if value.get("tokens") else []
    return ", ".join(_text(name) for name in names if name), _text(value["failure"])


def _host(value: dict[str, Any]) -> str:
    host, versions = value.get("host") or {}, value.get("versions") or {}
    machine = [f"{host.get(name)} {unit}".strip() for name, unit in (("machine", ""), ("system", ""), ("cpus", "CPUs"))]
    libraries = [f"{name} {version}" for name, version in versions.items()]
    return "; ".join(", ".join(words) for words in (machine if host else [], libraries) if words)


def _number(value: Any, above_zero: bool = False) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    require(good and value >= 0 and (value > 0 or not above_zero), f"{repr(value)} is not a number that can be drawn")
    return float(value)


def _text(value: Any) -> str:
    """What cannot be printed, lone surrogates too, becomes U+FFFD."""
    require(isinstance(value, str), f"{repr(value)} is not a text")
    return "".join(char if char.isprintable() else "\ufffd" for char in value)


def grouped(runs: Sequence[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    """Runs of equal key together, in the order in which the keys first come."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups
