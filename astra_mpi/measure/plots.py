"""Charts drawn with matplotlib: colours that colour-blind readers can tell apart, markers and dashes beside them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_mpi.files import whole
from astra_mpi.files.figure import save_figure
from astra_mpi.measure.charts import AXES, Bars, Chart, Line, line_charts, phase_bars
from astra_mpi.measure.runs import Measured

#: Okabe and Ito's palette but for its yellow, which white paper swallows
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*<>"
PHASE_COLORS = ("#999999", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#56B4E9", "#000000", "#FFFFFF")
LONGEST = 40  # characters of a name in a legend
WIDTH, HEIGHT = 9.0, 5.2  # inches


@dataclass(frozen=True)
class Picture:
    name: str  # a file name without ending
    title: str
    facts: str
    figure: Any

    def svg(self) -> bytes:
        """The same bytes for the same runs, text as shapes: it looks the same everywhere."""
        import matplotlib

        settings: dict[Any, Any] = {"svg.fonttype": "path", "svg.hashsalt": self.name}
        buffer = io.BytesIO()
        with matplotlib.rc_context(settings):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()


def draw_all(measured: Measured) -> list[Picture]:
    """Every chart of these runs."""
    names = sorted(dict.fromkeys(run.name for run in measured.runs), key=lambda name: not name.startswith("astra"))
    styles = {name: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}
    lines = [
        Picture(f"speedup-{chart.axis}-{i}", chart.title, chart.facts, _draw_lines(chart, styles))
        for i, chart in enumerate(line_charts(measured), 1)
    ]
    bars = [
        Picture(f"phases-{i}", chart.title, chart.facts, _draw_bars(chart))
        for i, chart in enumerate(phase_bars(measured), 1)
    ]
    return lines + bars


def save_pictures(pictures: Sequence[Picture], folder: Path) -> None:
    """As PNG. AstraError if they cannot be written."""
    whole.make_folder(folder)
    for picture in pictures:
        save_figure(folder / f"{picture.name}.png", picture.figure, dpi=150)


def _figure(title: str, facts: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle(_plain(title, 110), fontsize=11, x=0.01, ha="left")
    axes.spines[["top", "right"]].set_visible(False)
    note = _plain(textwrap.fill(facts, 150), len(facts) + 100)
    figure.supxlabel(note, fontsize=6.5, color="#555555", x=0.01, ha="left")
    return figure, axes


def _draw_lines(chart: Chart, styles: dict[str, tuple[str, str]]) -> Any:
    figure, axes = _figure(chart.title, chart.facts)
    axes.axhline(1, color="#777777", linewidth=1, zorder=1)
    axes.annotate("one\nmachine", (1, 1), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                  va="center", fontsize=8, color="#555555")  # fmt: skip
    for line in chart.lines:
        axes.plot(*zip(*line.points, strict=True), label=_plain(line.name), **_style(line, styles))
    _log_axes(axes, chart)
    axes.set(xlabel=AXES[chart.axis], ylabel="speed-up over one machine")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _style(line: Line, styles: dict[str, tuple[str, str]]) -> dict[str, Any]:
    if line.published:
        color = styles[line.like][0] if line.like else "#777777"
        return {"color": color, "linestyle": (0, (5, 3)), "linewidth": 1.2, "alpha": 0.8, "zorder": 2}
    color, marker = styles[line.name]
    return {"color": color, "marker": marker, "markersize": 5, "linewidth": 1.8, "zorder": 3}


def _log_axes(axes: Any, chart: Chart) -> None:
    """Both logarithmic, with plain numbers: ticks at what was measured, and at 1, 2, 5 times powers of ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    at = sorted({x for line in chart.lines for x, _ in line.points})
    for axis, locator, unit in (
        (axes.xaxis, FixedLocator(at), ""),
        (axes.yaxis, LogLocator(subs=(1, 2, 5), numticks=30), "x"),
    ):
        axis.set_major_locator(locator)
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: f"{value:g}{unit}"))
    axes.grid(True, color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_bars(chart: Bars) -> Any:
    """Bars lie, names beside them; what is longer than the axis is cut, and told."""
    figure, axes = _figure(chart.title, chart.facts)
    unit, factor = ("ms", 1e3) if chart.limit_s < 2 else ("s", 1.0)
    rows = range(len(chart.names))
    left = [0.0] * len(chart.names)
    for i, phase in enumerate(chart.phases):
        wide = [factor * row[i] for row in chart.seconds]
        wait = phase == "exchange"
        axes.barh(rows, wide, 0.7, left, color=PHASE_COLORS[-1] if wait else PHASE_COLORS[i % (len(PHASE_COLORS) - 1)],
                  edgecolor="#555555" if wait else "white", linewidth=0.5, hatch="////" if wait else None,
                  label="waiting for others" if wait else _plain(phase))  # fmt: skip
        left = [a + b for a, b in zip(left, wide, strict=True)]
    end = factor * chart.limit_s
    for row, total in enumerate(left):
        cut = total > 1.001 * end
        axes.annotate(f"{total:.4g} {unit}" + (" →" if cut else ""), (min(total, end), row), (4, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    for row, total in enumerate(left):
        if total > 1.001 * end:  # beyond the axis there is only its label
            axes.barh(row, 0.3 * end, 0.8, end, color="white", zorder=2)
    axes.set_yticks(rows, labels=[_plain(name) for name in chart.names], fontsize=9)
    axes.set(xlim=(0, 1.25 * end), xlabel=f"latency of one forward pass, {unit}")
    axes.invert_yaxis()
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _plain(text: str, longest: int = LONGEST) -> str:
    """Text for matplotlib: no mathematics in dollars, and no leading underscore, which hides a name from legends."""
    short = text if len(text) <= longest else text[: longest - 3] + "..."
    return ("\u200b" if short.startswith("_") else "") + short.replace("$", r"\$")
