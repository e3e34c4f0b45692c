"""The table and the page of story.py: one HTML file with charts, which refers to nothing outside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from astra_mpi.files import whole
from astra_mpi.measure.page import STYLE
from astra_mpi.version import __version__

COLORS = {"one machine": "#777777", "replicas": "#009E73", "exact, shared (sp)": "#D55E00", "astra": "#0072B2"}
BAR, GAP, LEFT, WIDTH = 22, 8, 150, 720  # pixels
MOST = 4.0  # how many times the second longest a bar may be; longer ones are cut
HOW = (
    "Measured by the virtual clock: CPU seconds of each rank on this computer, with one core for each machine, and what"
    " links of this rate with a round trip of 2 ms add. No network was used."
)
Element = ElementTree.Element


class Bars(NamedTuple):
    """Horizontal bars with their values in words."""

    title: str
    values: dict[str, float]  # by way
    unit: str


def tell(folder: Path) -> None:
    """Prints the table, and where the page is."""
    story, answers = (json.loads((folder / name).read_text("utf-8")) for name in ("story.json", "answers.json"))
    rows = table(story)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells))
    print("\n" + HOW + "\n" + "\n".join(conclusions(story)))
    path = folder / "story.html"
    whole.write_text(path, page(story, answers, rows))
    print(f"\n{path.resolve()}")


def table(story: dict[str, Any]) -> list[list[str]]:
    """Header and a row for each way."""
    rates = speeds(story)
    header = [f"{story['ranks']} machines, Mbit/s:", *(f"a passage, {mbps}" for mbps in rates)]
    header += [*(f"per s, {mbps}" for mbps in rates), "bytes each", "cosine", f"nearest {story['nearest']}"]
    rows = [header]
    for way in COLORS:
        found = [found for found in story["ways"] if found["way"] == way]
        latencies = [f"{one['latency_s'] * 1e3:.0f} ms" for one in found]
        job = [f"{one['per_s']:.1f}" for one in found]
        sent, near = f"{found[0]['bytes']:,.0f}", _cosine(found[0]["cosine"])
        rows.append([way, *latencies, *job, sent, near, f"{found[0]['agreement']:.0%}"])
    return rows


def _cosine(value: float) -> str:
    return "1" if value > 1 - 1e-5 else f"{value:.3f}"


def speeds(story: dict[str, Any]) -> list[int]:
    """Of the links, Mbit/s."""
    return list(dict.fromkeys(found["mbps"] for found in story["ways"]))


def conclusions(story: dict[str, Any]) -> list[str]:
    """In words, for each link: what is soonest for one passage, and what does most in a job."""
    lines = []
    for mbps in speeds(story):
        here = {found["way"]: found for found in story["ways"] if found["mbps"] == mbps}
        one = here["one machine"]
        soonest = min(here, key=lambda way: here[way]["latency_s"])
        most = max(here, key=lambda way: here[way]["per_s"])
        passage = f"one passage is done soonest by {soonest}"
        if soonest in ("exact, shared (sp)", "astra"):
            passage += f", {one['latency_s'] / here[soonest]['latency_s']:.2f} times as fast as by one machine"
        more = here[most]["per_s"] / one["per_s"]
        lines.append(
            f"At {mbps} Mbit/s {passage}; a job of many by {most}, {more:.2f} times as fast as by one machine."
        )
    return lines


def page(story: dict[str, Any], answers: dict[str, Any], rows: Sequence[Sequence[str]]) -> str:
    """The whole page."""
    root = Element("html", lang="en")
    head = ElementTree.SubElement(root, "head")
    head.append(Element("meta", charset="utf-8"))
    head.append(Element("meta", name="viewport", content="width=device-width, initial-scale=1"))
    title = f"ASTRA-MPI: {story['ranks']} machines and a slow network"
    head.extend([_tag("title", title), _tag("style", STYLE + "svg { width: 100%; height: auto; }")])
    body = ElementTree.SubElement(root, "body")
    body.extend([_tag("h1", title), _tag("p", " ".join(conclusions(story)), "verdict"), _tag("p", HOW, "notice")])
    for mbps in speeds(story):
        here = [found for found in story["ways"] if found["mbps"] == mbps]
        body.append(_tag("h2", f"Links of {mbps} Mbit/s"))
        for bars in (
            Bars("Seconds to the embedding of one passage", {one["way"]: one["latency_s"] for one in here}, "s"),
            Bars("Passages per second in a job of many", {one["way"]: one["per_s"] for one in here}, "/s"),
        ):
            figure = ElementTree.SubElement(body, "figure")
            figure.extend([_tag("figcaption", bars.title), chart(bars)])
    body.extend([_tag("h2", "All figures"), _table(rows), *_facts(story)])
    words = f"The same answers? {answers['agreement']:.0%} of the {answers['top']} best passages are the same"
    body.append(_tag("h2", words))
    for one in answers["questions"]:
        body.append(_tag("h3", one["question"]))
        for way in ("exact", "astra"):
            body.append(_tag("p", f"{way}: [{one[way]['source']}] {one[way]['text']}"))
    body.append(_tag("p", f"Written by jobs/quickstart.sh, astra-mpi {__version__}.", "facts"))
    return "<!doctype html>\n" + ElementTree.tostring(root, "unicode", method="html") + "\n"


def chart(bars: Bars) -> Element:
    """An SVG. A bar that is much longer than the others is cut, and its value says how long it is."""
    ordered = sorted(bars.values.values())
    end = min(ordered[-1], MOST * ordered[-2])
    height = len(bars.values) * (BAR + GAP)
    svg = Element("svg", viewBox=f"0 0 {WIDTH} {height}", role="img", xmlns="http://www.w3.org/2000/svg")
    svg.append(_tag("title", bars.title))
    for i, (way, value) in enumerate(bars.values.items()):
        y, long = i * (BAR + GAP), (WIDTH - LEFT - 90) * min(value, end) / end
        cut = value > end
        svg.append(_text(way, LEFT - 8, y, "end"))
        svg.append(Element("rect", x=f"{LEFT}", y=f"{y}", width=f"{long:.1f}", height=f"{BAR}", fill=COLORS[way]))
        svg.append(_text(f"{'→ ' if cut else ''}{value:.3g} {bars.unit}", LEFT + long + 6, y, "start"))
    return svg


def _text(words: str, x: float, y: float, anchor: str) -> Element:
    text = Element("text", {"x": f"{x:.1f}", "y": f"{y + BAR - 6}", "text-anchor": anchor, "font-size": "13"})
    text.text = words
    return text


def _tag(name: str, text: str = "", kind: str = "") -> Element:
    element = Element(name, {"class": kind} if kind else {})
    element.text = text
    return element


def _table(rows: Sequence[Sequence[str]]) -> Element:
    wide = _tag("div", kind="wide")
    table = ElementTree.SubElement(wide, "table")
    for i, row in enumerate(rows):
        ElementTree.SubElement(table, "tr").extend(_tag("td" if i else "th", cell) for cell in row)
    return wide


def _facts(story: dict[str, Any]) -> list[Element]:
    longest = story["ways"][0]["longest_tokens"]
    words = (
        f"A passage: the median of the longest, of {longest:.0f} tokens; replicas do it as one machine does, for a"
        f" passage is on one of them. The rest is of {story['sample']} passages drawn at random, in batches of"
        f" {story['batch']}, of replicas by a job whose smaller batches go over the links. Bytes: what all machines"
        " contribute to exchanges between blocks, for each passage."
        " Cosine: to the exact embeddings of the same passages, mean. Nearest"
        f" {story['nearest']}: of the passages nearest to each, those that are nearest by exact embeddings too."
    )
    return [_tag("p", words, "facts")]
