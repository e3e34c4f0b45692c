"""The figures of jobs/accuracy.py as a picture: what is lost at P = 4 over the bits per token and block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

STYLES = {
    "trained": ("o", "C0"),
    "codebooks alone": ("s", "C2"),
    "k-means": ("^", "C1"),
    "no codes": ("x", "0.4"),
}

AXES = {
    "accuracy": "accuracy lost, % of exact",
    "perplexity": "perplexity above exact, %",
    "spearman": "correlation lost, % of exact",
}


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """A panel per experiment; a point per row, the mean over its seeds. Rows that vary something else are left out."""
    from matplotlib.figure import Figure

    titles = list(dict.fromkeys(r["experiment"] for r in results))
    figure = Figure(figsize=(5 * len(titles), 4), layout="constrained")
    for axes, title in zip(np.atleast_1d(figure.subplots(1, len(titles))), titles, strict=True):
        rows: dict[str, list[dict[str, Any]]] = {}
        for r in results:
            if r["experiment"] == title and r.get("curve", True) and r["bits"] is not None:
                rows.setdefault(r["row"], []).append(r)
        for seeds in rows.values():
            losses = [loss for r in seeds if (loss := lost(r)) is not None]
            if losses:
                kind = kind_of(seeds[0])
                marker, colour = STYLES[kind]
                point = seeds[0]["bits"], np.mean(losses)
                axes.plot(*point, marker, color=colour, label=kind)
                axes.annotate(label(seeds[0]), point, (3, 3), textcoords="offset points", size=6)
        axes.axhline(0, color="0.8", linewidth=1, zorder=0)
        axes.set(xscale="log", xlabel="bits per token and block", title=title.split(" (")[0].split(",")[0])
        axes.set_ylabel(AXES[next(r["metric"] for r in results if r["experiment"] == title)])
        handles, labels = axes.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        axes.legend(named.values(), named.keys(), fontsize=7)
    figure.savefig(path)


def lost(result: dict[str, Any]) -> float | None:
    """Percent of the exact figure, at P = 4 with an even cut and all messages."""
    for f in result["figures"]:
        if f["at"] == {"ranks": 4}:
            change = f["figure"] / result["exact"] - 1
            return 100 * change if result["metric"] == "perplexity" else -100 * change
    return None


def kind_of(result: dict[str, Any]) -> str:
    if result["codec"] is None:
        return "no codes"
    if not result["steps"]:
        return "k-means"
    return "codebooks alone" if result["learn"] == "codebooks" else "trained"


def label(result: dict[str, Any]) -> str:
    codec = result["codec"]
    if codec is None:
        return str(result["says"]).split(",")[0]
    count = f"M={codec['stages']}" if codec["kind"] == "residual" else f"G={codec['groups']}"
    return f"{count} K={codec['codebook_size']}"
