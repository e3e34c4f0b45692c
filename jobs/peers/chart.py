"""The chart of page.py: who gives the first token when, and a further one, over the speed of the links."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from contestants import CONTESTANTS, NODES, OURS
from figures import Figures, Row

from astra_mpi.measure.plots import MARKERS, PALETTE

DOTS = ((0, (1, 1)), "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (8, 3)), (0, (4, 4)))  # on one node


def draw(figures: Figures, tokens: int) -> bytes:
    """SVG: the same bytes for the same figures."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    panel(left, figures, tokens, lambda row: row.first_s, f"seconds to the first token, prompt of {tokens}")
    panel(right, figures, tokens, lambda row: 1e3 * row.token_s, "milliseconds per further token")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    buffer = io.BytesIO()
    settings: dict[Any, Any] = {"svg.fonttype": "path", "svg.hashsalt": "peers"}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def panel(axes: Any, figures: Figures, tokens: int, value: Callable[[Row], float], label: str) -> None:
    """Lines over links for four nodes; the best of each peer on one node lies flat."""
    links = figures.links()
    for i, one in enumerate(one for one in CONTESTANTS if one.nodes == NODES):
        points = [(float(link), value(row)) for link in links if (row := figures.get(link, one, tokens))]
        if points:
            look: dict[str, Any] = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}
            look |= {"linewidth": 2.2, "linestyle": "-"} if one.peer == OURS else {"linewidth": 1.2, "linestyle": "--"}
            axes.plot(*zip(*points, strict=True), label=f"{NODES} nodes: {named(one)}", **look)
    for dots, peer in zip(DOTS, dict.fromkeys(one.peer for one in CONTESTANTS), strict=True):
        alone = [row for one in CONTESTANTS if one.peer == peer and (row := figures.get("node", one, tokens))]
        if alone:
            axes.axhline(min(map(value, alone)), color="#555555", linewidth=1.2, linestyle=dots,
                         label=f"one node: {peer}, its best")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="Mbit/s of a link", ylabel=label)
    axes.set_xticks([float(link) for link in links], labels=links)
    axes.minorticks_off()
    plain_numbers(axes.yaxis)
    axes.grid(True, color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def plain_numbers(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def named(one: Any) -> str:
    return f"{one.peer}: {one.title}".replace("`", "")
