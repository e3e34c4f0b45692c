"""One HTML page about measured runs. It is built as a tree, so that all text from files is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from astra_mpi.measure.runs import Measured, Run, grouped
from astra_mpi.measure.verdict import condition, verdict
from astra_mpi.version import __version__

if TYPE_CHECKING:
    from astra_mpi.measure.plots import Picture

Element = ElementTree.Element
TITLE = "ASTRA-MPI: measured latency"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
.verdict { background: #eef4f9; border-left: 4px solid #0072b2; padding: .8rem 1rem; }
.notice { background: #fdf3e7; border-left: 4px solid #d55e00; padding: .5rem 1rem; }
figure { margin: 1.5rem 0; } img { width: 100%; height: auto; } figcaption, .facts { color: #555; font-size: .8rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td.text { text-align: left; white-space: normal; }
"""
COLUMNS = (
    "strategy", "products in", "total, ms", "quartiles, ms", "speed-up", "waiting, ms", "contributed, bytes",
    "busiest port, bytes", "distinct keys", "counted keys",
)  # fmt: skip


def page(measured: Measured, pictures: Sequence[Picture], lacking: str = "") -> str:
    """The whole page, without references to anything outside it. lacking: why there are no pictures."""
    root = Element("html", lang="en")
    head = ElementTree.SubElement(root, "head")
    head.append(Element("meta", charset="utf-8"))
    head.append(Element("meta", name="viewport", content="width=device-width, initial-scale=1"))
    head.extend([_tag("title", TITLE), _tag("style", STYLE)])
    body = ElementTree.SubElement(root, "body")
    body.extend([_tag("h1", TITLE), _tag("p", " ".join(verdict(measured)), "verdict"), *_figures(pictures, lacking)])
    body.extend([*_tables(measured), *_failures(measured), _tag("h2", "Host and versions")])
    body.extend([_tag("p", host) for host in measured.hosts])
    body.append(_tag("p", f"Written by astra-mpi {__version__}.", "facts"))
    return "<!doctype html>\n" + ElementTree.tostring(root, "unicode", method="html") + "\n"


def _tag(name: str, text: str = "", kind: str = "") -> Element:
    element = Element(name, {"class": kind} if kind else {})
    element.text = text
    return element


def _figures(pictures: Sequence[Picture], lacking: str) -> Iterator[Element]:
    if lacking:
        yield _tag("p", f"This page has no plots: {lacking}", "notice")
    for picture in pictures:
        figure = Element("figure")
        data = base64.b64encode(picture.svg()).decode()
        figure.append(Element("img", src=f"data:image/svg+xml;base64,{data}", alt=picture.title))
        figure.append(_tag("figcaption", f"{picture.title}. {picture.facts}"))
        yield figure


def _tables(measured: Measured) -> Iterator[Element]:
    if measured.runs:
        yield _tag("h2", "All runs")
        yield _tag("p", "Medians over repeats of the slowest rank. Speed-ups are over `single` under the same"
                   " condition, medians of pairs measured in turns. Bytes are of one forward pass.")  # fmt: skip
    for runs in grouped(measured.runs, lambda run: run.at).values():
        yield _tag("h3", condition(runs[0]))
        yield _table(COLUMNS, [_row(run) for run in sorted(runs, key=lambda run: run.total_s)])


def _row(run: Run) -> list[str]:
    counted = {None: "-", True: "on", False: "off"}[run.counted_keys]
    return [
        run.name,
        run.at.compute,
        f"{1e3 * run.total_s:.4g}",
        " to ".join(f"{1e3 * q:.4g}" for q in run.quartiles_s),
        "-" if run.speedup is None else f"{run.speedup:.3g}x",
        f"{1e3 * run.wait_s:.4g}",
        f"{run.contributed_bytes:,}",
        f"{run.port_bytes:,}",
        "-" if run.distinct_keys is None else f"{run.distinct_keys:.0f}",
        counted,
    ]


def _failures(measured: Measured) -> Iterator[Element]:
    if measured.failures:
        yield _tag("h2", "What failed")
        yield _table(("point", "why"), [list(failure) for failure in measured.failures], text=True)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], text: bool = False) -> Element:
    """text: every cell is words, not a number."""
    wide = _tag("div", kind="wide")
    table = ElementTree.SubElement(wide, "table")
    header = ElementTree.SubElement(ElementTree.SubElement(table, "thead"), "tr")
    header.extend(_tag("th", name) for name in names)
    body = ElementTree.SubElement(table, "tbody")
    for row in rows:
        ElementTree.SubElement(body, "tr").extend(_tag("td", cell, "text" if text else "") for cell in row)
    return wide
