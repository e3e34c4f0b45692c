"""The figures of jobs/accuracy/run.py as a picture: what is lost at P = 4 over the bits per token and block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.files.figure import save_figure

STYLES = {
    "trained": ("o", "C0"),
    "codebooks alone": ("s", "C2"),
    "k-means": ("^", "C1"),
    "k-means, by distance": ("v", "C3"),
    "first block from inputs": ("*", "C4"),
    "no codes": ("x", "0.4"),
}
LEAST_POINTS = 3  # of a panel
COLUMNS = 2

AXES = {
    "accuracy": "accuracy lost, % of exact",
    "perplexity": "perplexity above exact, %",
    "spearman": "correlation lost, % of exact",
}


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """A panel per experiment; a point per row, the mean over its seeds. Rows that vary something else are left out."""
    from matplotlib.figure import Figure

    panels = {title: points([r for r in results if r["experiment"] == title]) for title in titles(results)}
    panels = {title: found for title, found in panels.items() if len(found) >= LEAST_POINTS}
    columns = min(max(len(panels), 1), COLUMNS)
    lines = -(-max(len(panels), 1) // columns)
    figure = Figure(figsize=(5.5 * columns, 4.5 * lines), layout="constrained")
    for i, (title, found) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, i)
        named = {}
        for bits, loss, kind, name in found:
            marker, colour = STYLES[kind]
            (named[kind],) = axes.plot(bits, loss, marker, color=colour)
            far = kind == "no codes"  # at the right edge
            where = {"xytext": (-4 if far else 4, 3), "ha": "right" if far else "left"}
            axes.annotate(name, (bits, loss), textcoords="offset points", size=6, **where)
        ticks = [2.0**n for n in range(2, 12) if min(f[0] for f in found) / 2 <= 2**n <= 2 * max(f[0] for f in found)]
        axes.axhline(0, color="0.8", linewidth=1, zorder=0)
        axes.set(xscale="log", xlabel="bits per token and block", title=title.split(" (")[0].split(",")[0])
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_yscale("symlog", linthresh=1)
        axes.margins(y=0.15)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel(AXES[next(r["metric"] for r in results if r["experiment"] == title)])
        axes.legend(named.values(), named.keys(), fontsize=7)
    save_figure(path, figure)


def titles(results: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(r["experiment"] for r in results))


def points(results: list[dict[str, Any]]) -> list[tuple[float, float, str, str]]:
    """(bits, percent lost, kind, label) of each row of an experiment."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for r in results:
        if r["curve"] and r["bits"] is not None and lost(r) is not None:
            rows.setdefault(r["row"], []).append(r)
    return [
        (seeds[0]["bits"], float(np.mean([lost(r) for r in seeds])), kind_of(seeds[0]), label(seeds[0]))
        for seeds in rows.values()
    ]


def lost(result: dict[str, Any]) -> float | None:
    """Percent of the exact figure, at P = 4 with an even cut and all messages."""
    for f in result["figures"]:
        if f["at"] == {"ranks": 4}:
            change = f["figure"] / result["exact"] - 1
            return 100 * change if result["metric"] == "perplexity" else -100 * change
    return None


def kind_of(result: dict[str, Any]) -> str:
    codec = result["codec"]
    if codec is None:
        return "no codes"
    if result.get("first") == "inputs":
        return "first block from inputs"
    if not result["steps"]:
        by_distance = result["metric_of_codes"] == "plain" or codec["groups"] > 1
        return "k-means, by distance" if by_distance else "k-means"
    return "codebooks alone" if result["learn"] == "codebooks" else "trained"


def label(result: dict[str, Any]) -> str:
    codec = result["codec"]
    if codec is None:
        return str(result["says"]).split(",")[0]
    count = f"M={codec['stages']}" if codec["kind"] == "residual" else f"G={codec['groups']}"
    return f"{count} K={codec['codebook_size']}"
