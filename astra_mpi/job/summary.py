"""One JSON object that says what a job was, what it cost and what came out."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from astra_mpi.decks.deck import Deck
from astra_mpi.job import generation
from astra_mpi.job.results import Results
from astra_mpi.version import __version__

_COSTS = (
    *("contributed_bytes", "formula_bytes", "port_bytes", "paper_bytes", "other_bytes"),
    *("distinct_keys", "missing", "latency_s"),
)


def summarise(deck: Deck, model: Any, results: Results, labels: np.ndarray | None) -> dict[str, Any]:
    """The summary of a finished job from the reports of its batches: bytes added up, latencies as medians."""
    first = next(results.reports())
    told = _Told()
    cost = costs(told.through(results.reports()))
    return {
        "astra_mpi": __version__,
        "task": deck.task.name,
        "model": str(deck.model.path),
        **{name: first[name] for name in ("family", "strategy", "ranks")},
        **{name: first[name] for name in ("grid", "blocks", "handed_on") if name in first},
        **({"weight_bytes": first["weight_bytes"], "handed_bytes": told.handed_bytes} if "blocks" in first else {}),
        **({"replicas": told.replicas(first["grid"])} if "replica" in first else {}),
        "elapsed_s": told.elapsed_s,
        "items": results.n_items,
        "tokens": told.tokens,
        "codec": first["codec"],
        "bits_per_token_per_block": told.bits,
        **{name: first[name] for name in ("network", "accounting", "clock", "speed")},
        **cost,
        "metrics": {"forward_s": told.forward_s, **_metrics(results, labels)},
        "choices": first["choices"],
        "auto": first.get("auto"),
        "compute": first.get("compute"),
        "deck": deck.as_dict(),
        "host": host(),
        "versions": versions(),
    }


class _Told:
    """Sums over reports as they pass."""

    tokens, forward_s, _untimed = 0, 0.0, False
    bits: float = 0  # per token and block, the mean over tokens where batches differ

    def __init__(self) -> None:
        self.handed_bytes: list[int] = []  # of each rank, from a stage to the next
        self._done: dict[int, dict[str, Any]] = {}  # by each of several replicas
        self._runs: dict[str, tuple[float, float]] = {}  # when the first batch of a run began, and its last one ended

    def through(self, reports: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for report in reports:
            n_tokens, bits = sum(report["tokens"]), report["bits_per_token_per_block"]
            self.tokens += n_tokens
            if self.tokens == n_tokens:
                self.bits = bits
            elif bits != self.bits:
                self.bits += (bits - self.bits) * n_tokens / self.tokens
            self.forward_s += report["latency_s"]["total"]
            if "span" in report:
                self._note(report)
            else:  # of an earlier version
                self._untimed = True
            if "handed_bytes" in report:
                before = self.handed_bytes or [0] * len(report["handed_bytes"])
                self.handed_bytes = [a + b for a, b in zip(before, report["handed_bytes"], strict=True)]
            yield report

    def _note(self, report: dict[str, Any]) -> None:
        """When a batch began and ended, and who of several replicas has done it."""
        span, nothing = report["span"], {"batches": 0, "items": 0, "busy_s": 0.0}
        begin_s, end_s = self._runs.get(span["run"], (span["begin_s"], span["end_s"]))
        self._runs[span["run"]] = min(begin_s, span["begin_s"]), max(end_s, span["end_s"])
        if "replica" in report:
            mine = self._done.setdefault(report["replica"], nothing)
            mine["batches"] += 1
            mine["items"] += len(report["tokens"])
            mine["busy_s"] += span["end_s"] - span["begin_s"]

    def replicas(self, grid: str) -> list[dict[str, Any]]:
        """What each has done."""
        nothing = {"batches": 0, "items": 0, "busy_s": 0.0}
        return [self._done.get(i, nothing) for i in range(int(grid.split("x")[0]))]

    @property
    def elapsed_s(self) -> float | None:
        """From the beginning of the first batch to the end of the last one, of all runs of the job together, with what
        rank 0 reads and writes between them, which a virtual clock does not count. None: of some it is not known."""
        return None if self._untimed else sum(end_s - begin_s for begin_s, end_s in self._runs.values())


def costs(reports: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What batches, or the shards of a job, cost together. Of each only its costs are kept."""
    reports = [{name: report[name] for name in _COSTS} for report in reports]
    return {
        **{name: _added(reports, name) for name in ("contributed_bytes", "formula_bytes", "port_bytes")},
        "paper_bytes": sum(report["paper_bytes"] for report in reports),
        "other_bytes": sum(report["other_bytes"] for report in reports),
        "distinct_keys": _mean([report["distinct_keys"] for report in reports]),
        "missing": _missing([report["missing"] for report in reports]),
        "latency_s": _medians([report["latency_s"] for report in reports]),
    }


def host() -> dict[str, Any]:
    return {"machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count()}


def versions() -> dict[str, str]:
    from mpi4py import MPI

    names = ("mpi4py", "numpy", "numba", "h5py")
    mpi = " ".join(MPI.Get_library_version().split("\n")[0].strip("\0").split())
    return {"python": platform.python_version(), "mpi": mpi, **{name: version(name) for name in names}}


def _added(reports: Sequence[dict[str, Any]], name: str) -> list[int]:
    """A per-rank count, added up over batches."""
    return [sum(counts) for counts in zip(*(report[name] for report in reports), strict=True)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _missing(parts: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Counts added up over batches."""
    known = [part for part in parts if part is not None]
    sums = {name: sum(part[name] for part in known) for name in ("messages", "lost", "late")}
    return {**known[0], **sums} if known else None


def _medians(latencies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The batch of median total; its phases belong together, so that they still add up."""
    return sorted(latencies, key=lambda latency: latency["total"])[(len(latencies) - 1) // 2]


def _metrics(results: Results, labels: np.ndarray | None) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    if labels is not None and results.state["task.name"] == "classify":
        metrics["accuracy"] = float((results.outputs("class") == labels).mean())
    if results.state["task.name"] == "perplexity":
        nll, scored = results.outputs("nll").sum(dtype=np.float64), results.outputs("scored").sum()
        metrics |= {"perplexity": float(np.exp(nll / scored)), "scored_tokens": int(scored)}
    if results.state["task.name"] == "generate":
        metrics |= generation.metrics(results.reports(), results.outputs("n_tokens"))
    return metrics
