"""Codebooks with which `astra` would wait less: codes that are late, or in every N-th block alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.every import in_every
from astra_mpi.costs.latency import latency
from astra_mpi.costs.setting import Setting
from astra_mpi.costs.strategies import STRATEGIES
from astra_mpi.planner.advice import WORTH
from astra_mpi.planner.plan import best_cut

#: blocks that share an exchange
_EVERY = (1, 2, 4)


def fewer_waits(setting: Setting) -> list[dict[str, Any]]:
    """What other codebooks of as many bits would take, fastest first, as JSON types; none for one rank."""
    if setting.size == 1:
        return []
    rows = []
    for every, codec in _codecs(setting):
        other = replace(setting, coding=replace(setting.coding, codec=codec, distinct=None))
        for strategy in ("astra", "astra:late"):
            cost = STRATEGIES[strategy](other.job(best_cut(other, strategy)), other.coding)
            took = latency(cost, other.speeds, other.network)
            row = {"strategy": strategy, "predict": codec.predict, "every": every}
            rows.append(row | {"latency_s": took.total, "wait_s": took.wait})
    return sorted(rows, key=lambda row: float(row["latency_s"]))


def _codecs(setting: Setting) -> Iterator[tuple[int, CodecConfig]]:
    """The setting's own with maps, in every block and in fewer."""
    codec, n_layers = setting.coding.codec, setting.config.n_layers
    count = codec.rule.count
    if codec.by_block:
        alike: dict[str, Any] = {count: round(codec.bits_per_token / max(codec.bits * codec.n_books, 1)) or 1}
        codec = replace(codec, **alike) if count == "stages" else codec
    if not codec.has_maps:
        codec = replace(codec, site="normed", predict="next" if codec.site == "normed" else "linear")
    for every in _EVERY:
        if every == 1 or (count == "stages" and isinstance(codec.stages, int) and every < n_layers - 1):
            yield every, codec if every == 1 else in_every(codec, every, n_layers)


def waiting_advice(rows: list[dict[str, Any]], strategies: list[dict[str, Any]]) -> list[str]:
    """The fastest of `fewer_waits`, in words, if it is faster than all strategies of `planner.plan` as they are."""
    usable = [row for row in strategies if "skipped" not in row and not row["strategy"].startswith("bp")]
    known = [row["latency_s"]["port"] for row in usable]
    if not rows or not known or min(known) < WORTH * rows[0]["latency_s"]:
        return []
    best = rows[0]
    every = f" --every {best['every']}" if best["every"] > 1 else ""
    return [
        f"With codebooks of `calibrate --predict {best['predict']}{every}`, {best['strategy']} would take"
        f" {1e3 * best['latency_s']:.1f} ms, of which {1e3 * best['wait_s']:.1f} ms waits. Measure what that costs in"
        " accuracy on your data; docs/explanation/waiting.md has figures."
    ]
