"""A picture of the table of language.py: perplexity above exact over the bits, a line for each number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from astra_mpi.files.figure import save_figure

MARKERS = "osv^D"


class Point(NamedTuple):
    """A row of the table on some ranks."""

    bits: float
    over: float  # perplexity over the exact one
    row: str


def draw(lines: Mapping[int, Sequence[Point]], path: Path) -> None:
    """Points of each number of ranks; names stand beside those of the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for n, (ranks, points) in enumerate(lines.items()):
        found = sorted(points)
        above = [100 * (point.over - 1) for point in found]
        axes.plot([point.bits for point in found], above, f"{MARKERS[n % len(MARKERS)]}-", label=f"P = {ranks}")
        for point, y in zip(found if n == 0 else [], above, strict=False):
            axes.annotate(point.row, (point.bits, y), xytext=(4, 4), textcoords="offset points", size=7)
    ticks = [2**n for n in range(3, 13)]
    axes.axhline(0, color="0.8", linewidth=1, zorder=0)
    axes.set(xscale="log", xlabel="bits per token and block", ylabel="perplexity above exact, %")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.1, y=0.1)
    axes.legend()
    save_figure(path, figure)
