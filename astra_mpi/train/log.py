"""What a run says: lines on stderr with the time left, a JSON line per record, and the curve as a picture."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from astra_mpi.files import whole
from astra_mpi.files.figure import save_figure

LINE_EVERY_S = 10.0


class Log:
    """One rank has one. Records are {"step": steps done, ..}; those beyond the first step are dropped at the start."""

    def __init__(self, path: Path, picture: Path, first: int, steps: int, metric: str, grows: bool) -> None:
        """grows: whether more of the metric is better."""
        self.path, self.picture, self.steps, self.metric, self.grows = path, picture, steps, metric, grows
        self.first, self.start_s, self.said_s = first, time.monotonic(), 0.0
        kept = read_log(path) if first and path.exists() else []
        self.records = [record for record in kept if record["step"] <= first]
        whole.write_text(path, "".join(json.dumps(record) + "\n" for record in self.records), mark="")

    def write(self, record: dict[str, Any], aloud: bool = False) -> None:
        self.records.append(record)
        whole.append(self.path, json.dumps(record) + "\n")
        now_s = time.monotonic()
        if aloud or now_s - self.said_s >= LINE_EVERY_S:
            self.said_s = now_s
            facts = [f"{key} {value:.4g}" for key, value in record.items() if isinstance(value, float)]
            print(
                f"step {record['step']}/{self.steps}: {', '.join(facts)}; {self._left(record['step'], now_s)}",
                file=sys.stderr,
                flush=True,
            )

    def _left(self, step: int, now_s: float) -> str:
        if step <= self.first:
            return "time left unknown"
        left_s = (self.steps - step) * (now_s - self.start_s) / (step - self.first)
        return f"{left_s / 60:.0f} min left" if left_s >= 120 else f"{left_s:.0f} s left"

    def worsened(self) -> str:
        """What there is to say if the last validation is worse than the one before training; else nothing."""
        known = [(record["step"], record[self.metric]) for record in self.records if self.metric in record]
        if len(known) < 2 or known[0][0] > 0:
            return ""
        (_, before), (_, after) = known[0], known[-1]
        shown = f"{before:.4g}" != f"{after:.4g}" and math.isfinite(before)
        if not shown or (after >= before if self.grows else after <= before):
            return ""
        step, best = (max if self.grows else min)(known, key=lambda one: one[1])
        sooner = f"; step {step} had {best:.4g}" if step else ""
        return (
            f"{self.metric} {after:.4g} is worse than {before:.4g} before training: lower train.lr, train.codebook_lr"
            f" or train.predictor_lr{sooner}"
        )

    def draw(self) -> None:
        """The curve so far; nothing without matplotlib."""
        try:
            draw_curve(self.records, self.picture, self.metric)
        except ImportError:
            return


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def draw_curve(records: list[dict[str, Any]], picture: Path, metric: str) -> None:
    """Loss of the steps, and on a second axis the validation figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    losses = [(r["step"], r["loss"]) for r in records if "loss" in r]
    axes.plot(*zip(*losses, strict=True) if losses else ([], []), color="0.6", linewidth=1, label="training loss")
    axes.set(xlabel="step", ylabel="loss")
    right = axes.twinx()
    right.set_ylabel(f"validation {metric}")
    names = sorted({key for r in records for key in r if key.startswith(metric)})
    for name in names:
        points = [(r["step"], r[name]) for r in records if name in r]
        right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="best")
    save_figure(picture, figure, dpi=120)
