"""A running, dead or stopped job as its parts folder shows it, to any process that sees the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.errors import InputError
from astra_mpi.files import hdf5
from astra_mpi.inputs.shards import shard_items
from astra_mpi.job import lock

#: finished batches that say how fast a job is now
RECENT = 20


@dataclass(frozen=True)
class Batch:
    """A finished batch."""

    number: int
    finished_s: float  # Unix time
    items: int
    report: dict[str, Any]


def is_parts_folder(path: str | Path) -> bool:
    return Path(path).name.endswith(".parts") and Path(path).is_dir()


def describe_job(folder: str | Path) -> dict[str, Any]:
    """Progress, throughput, wait share and slowest rank, as JSON types. InputError if this is no folder of a job.

    state: "running"; "dead"; "stopped" after a signal or an error; "joining", when all batches are finished and the
    results are being written. A dead or stopped job is continued by the same command.
    """
    folder = Path(folder)
    settings = _settings(folder)
    items = shard_items(
        settings["input_items"], settings.get("input.shard"), settings.get("input.shard_by", "contiguous")
    )
    batches = sorted(_batches(folder, len(items), settings["run.batch"]), key=lambda batch: batch.finished_s)
    n_batches = -(-len(items) // settings["run.batch"])
    done = sum(batch.items for batch in batches)
    holder = lock.look(folder / "lock")
    speed = _speed(batches)
    return {
        "path": str(folder),
        "format": "a job's parts",
        "state": _state(holder, len(batches) == n_batches),
        "holder": holder,
        "task": settings.get("task.name"),
        "strategy": batches[-1].report.get("strategy") if batches else settings.get("parallel.strategy"),
        "compute": _compute(batches, settings),
        "ranks": settings.get("ranks"),
        "threads": settings.get("run.threads"),
        "shard": settings.get("input.shard"),
        "batches": {"done": len(batches), "all": n_batches},
        "items": {"done": done, "all": len(items), "share": done / len(items)},
        "items_per_s": speed,
        "left_s": (len(items) - done) / speed if speed else None,
        "started": _when((folder / "state.json").stat().st_mtime),
        "last_batch": _when(batches[-1].finished_s) if batches else None,
        **_costs([batch.report for batch in batches]),
    }


def _compute(batches: Sequence[Batch], settings: Mapping[str, Any]) -> str | None:
    """The type of products, once a batch is finished the chosen one."""
    chosen = batches[-1].report.get("choices", {}).get("compute") if batches else None
    return chosen or settings.get("parallel.compute")


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if settings["run.batch"] >= 1 and settings["input_items"] >= 1:
            return dict(settings)
    except FileNotFoundError as exc:
        raise InputError(f"{folder} holds no state.json: no job has begun here, or it has finished") from exc
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputError(f"{folder}/state.json cannot be read ({exc})") from exc
    raise InputError(f"{folder}/state.json is not what astra-mpi writes")


def _batches(folder: Path, n_items: int, batch: int) -> Iterator[Batch]:
    """The finished ones; parts may vanish meanwhile, when the job ends."""
    for path in folder.glob("part-*.h5"):
        try:
            number = int(path.stem.removeprefix("part-"))
            with hdf5.reading(path) as file:
                report = json.loads(hdf5.text(file, "report"))
            finished_s = path.stat().st_mtime
        except (InputError, ValueError, OSError):
            continue
        yield Batch(number, finished_s, min(batch, n_items - number * batch), report)


def _state(holder: Mapping[str, Any] | None, complete: bool) -> str:
    if holder is None:
        return "stopped"
    if not holder["alive"]:
        return "dead"
    return "joining" if complete else "running"


def _speed(batches: Sequence[Batch]) -> float | None:
    """Items per second between the ends of recent batches; a pause, after which the job went on, does not count."""
    recent = batches[-RECENT - 1 :]
    gaps_s = [b.finished_s - a.finished_s for a, b in pairwise(recent)]
    if not gaps_s or max(gaps_s) <= 0:
        return None
    longest_s = 10 * float(np.median(gaps_s))
    kept = [(batch.items, gap_s) for batch, gap_s in zip(recent[1:], gaps_s, strict=True) if gap_s <= longest_s]
    spent_s = sum(gap_s for _, gap_s in kept)
    return sum(items for items, _ in kept) / spent_s if spent_s > 0 else None


def _costs(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the time of the forward passes went; the slowest rank is the one that computed longest."""
    times = [report["latency_s"] for report in reports if "latency_s" in report]
    total_s = sum(latency["total"] for latency in times)
    computed = [latency["compute_by_rank"] for latency in times if "compute_by_rank" in latency]
    slowest = None
    if computed:
        by_rank_s = np.array(computed).sum(axis=0)  # (P,)
        rank = int(by_rank_s.argmax())
        slowest = {"rank": rank, "compute_s": float(by_rank_s[rank]), "over_mean": _over_mean(by_rank_s)}
    return {
        "tokens": sum(sum(report.get("tokens", ())) for report in reports),
        "forward_s": total_s,
        "wait_share": sum(latency["exchange_wait"] for latency in times) / total_s if total_s else None,
        "slowest_rank": slowest,
    }


def _over_mean(by_rank_s: np.ndarray) -> float | None:
    return float(by_rank_s.max() / by_rank_s.mean()) if by_rank_s.mean() > 0 else None


def _when(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")
