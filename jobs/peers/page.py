"""Tables, sentences and the chart of what measure.py has measured.

python jobs/peers/page.py WORK [--write docs/log/peers.md] [--tokens 1024]
Prints Markdown. --write puts it into that page, between the two lines that mark its place, and the chart beside the
page. What was not measured is a dash. --tokens: the prompt of the chart, and of the columns that have room for one.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contestants import BY_NAME, CONTESTANTS, NODES, Contestant
from figures import Figures, Row, read

from astra_mpi.files import whole

BEGIN, END = "<!-- measured: jobs/peers/page.py writes this -->", "<!-- end -->"
GOAL = ("ours-astra", "ours-sp", "ours-sp-q8_0")  # within 1.05x of the exact perplexity
BAR = 2.5
Table = list[list[str]]


def markdown(heads: list[str], rows: Table) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def seconds(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def peer_and_title(one: Contestant) -> str:
    return f"{one.peer}, {one.title}"


def same(row: Row) -> str:
    if row.same is None:
        return "-"
    return "all" if row.same == row.new else f"{row.same} of {row.new}"


def at_one(figures: Figures, place: str, tokens: int) -> str:
    """One node or one core: a row per contestant."""
    lengths = figures.lengths()
    rows = []
    for one in (one for one in CONTESTANTS if one.nodes == 1):
        found = {n: figures.get(place, one, n) for n in lengths}
        if any(found.values()):
            cells = [seconds(row.first_s) if row else "-" for row in found.values()]
            shown = found.get(tokens) or next(row for row in found.values() if row)
            rest = [f"{1e3 * shown.token_s:.1f}", f"{shown.peak_bytes / 1e6:.0f}"]
            answers = "; ".join(same(row) if row else "-" for row in found.values())
            rows.append([peer_and_title(one), *cells, *rest, answers])
    heads = ["", *(f"first token, {n}: s" for n in lengths), "further token, ms", "peak MB", "same answer"]
    return markdown(heads, rows)


def on_four(figures: Figures, tokens: int) -> str:
    """Four nodes at every link: a row per contestant."""
    links, rows = figures.links(), []
    for one in (one for one in CONTESTANTS if one.nodes == NODES):
        found = {link: figures.get(link, one, tokens) for link in links}
        known = [row for row in found.values() if row]
        out = {link: figures.left_out.get((link, one.name, tokens)) for link in links}
        if not known and not any(out.values()):
            continue
        cells = []
        for link, row in found.items():
            guess = out[link]
            cells.append(
                f"{seconds(row.first_s)}; {1e3 * row.token_s:.0f}" if row else f"> {guess:.0f}" if guess else "-"
            )
        rest = ["-"] * 5
        if known:
            shown = known[-1]
            sent = f"{shown.first_bytes / 1e6:.3g} MB; {shown.token_bytes / 1e3:.3g} kB"
            slowest = max(row.load_s for row in known)
            rest = [sent, f"{shown.peak_bytes / 1e6:.0f}", f"{slowest:.0f}", same(shown), perplexity(figures, one)]
        rows.append([peer_and_title(one), *cells, *rest])
    heads = [
        "",
        *(f"{link} Mbit/s: s; ms" for link in links),
        "on the wires",
        "peak MB",
        "loading s",
        "same answer",
        "perplexity",
    ]
    return markdown(heads, rows)


def perplexity(figures: Figures, one: Contestant) -> str:
    """What its codes cost; int8 products cost more, which is not measured here."""
    known = figures.perplexity
    shown = known and one.codes and one.load["compute"] != "int8"
    return f"{known['coded'] / known['exact']:.3f}x" if known and shown else "-"


@dataclass(frozen=True)
class Case:
    """A prompt and a link: this project on four nodes, the peer that begins soonest, the one that writes fastest."""

    ours: Row
    first: Row  # on one node or four
    writer: Row  # on one node

    @property
    def sooner(self) -> float:
        return self.first.first_s / self.ours.first_s

    @property
    def faster(self) -> float:
        return self.writer.token_s / self.ours.token_s


def cases(figures: Figures) -> list[Case]:
    found = []
    for tokens in figures.lengths():
        for link in figures.links():
            ours = [row for name in GOAL if (row := figures.get(link, BY_NAME[name], tokens))]
            first = figures.best("first_s", tokens, ("node", link), ours=False)
            writer = figures.best("token_s", tokens, ("node",), ours=False)
            if ours and first and writer:
                found.append(Case(min(ours, key=lambda row: row.first_s), first, writer))
    return found


def goal(figures: Figures) -> str:
    rows = []
    for case in cases(figures):
        row, writer = case.ours, case.writer
        rows.append([
            f"{row.tokens}", row.place, row.contestant.title, seconds(row.first_s),
            f"{seconds(case.first.first_s)} ({where(case.first)})", f"{case.sooner:.2f}x",
            f"{1e3 * row.token_s:.1f}", f"{1e3 * writer.token_s:.1f} ({where(writer)})", f"{case.faster:.2f}x",
        ])  # fmt: skip
    heads = ["prompt", "Mbit/s", f"ours on {NODES} nodes", "first token, s", "best peer's", "sooner"]
    return markdown([*heads, "further token, ms", "best peer's, one node", "faster"], rows)


def where(row: Row) -> str:
    return f"{peer_and_title(row.contestant)}, {'one node' if row.contestant.nodes == 1 else f'{NODES} nodes'}"


def winners(figures: Figures) -> str:
    """Of each case, of all on one node and four: who is first, where a peer on one node and four nodes are measured."""
    lines = []
    for tokens in figures.lengths():
        alone = figures.best("first_s", tokens, ("node",), ours=False)
        for link in figures.links():
            if not (alone and figures.best("first_s", tokens, (link,), ours=True)):
                continue
            for quantity, what in (("first_s", "first token"), ("token_s", "a further token")):
                ours, theirs = (figures.best(quantity, tokens, ("node", link), ours=mine) for mine in (True, False))
                if ours and theirs:
                    lines.append(verdict(ours, theirs, quantity, f"{tokens} tokens, {link} Mbit/s, {what}"))
    return "\n".join(lines)


def verdict(ours: Row, theirs: Row, quantity: str, case: str) -> str:
    mine, other = getattr(ours, quantity), getattr(theirs, quantity)
    first, second, by = (ours, theirs, other / mine) if mine <= other else (theirs, ours, mine / other)
    mark = "" if first is ours else "**a peer wins:** "
    return f"- {case}: {mark}{where(first)}, {by:.2f}x as fast as {where(second)}"


def reached(figures: Figures) -> str:
    """In a sentence, for prompts of 1024 tokens or more and links up to 100 Mbit/s."""
    of_goal = [case for case in cases(figures) if case.ours.tokens >= 1024 and float(case.ours.place) <= 100]
    if not of_goal:
        return "The cases of the goal are not measured."
    sooner, faster = sorted(case.sooner for case in of_goal), sorted(case.faster for case in of_goal)
    prompts = " and ".join(map(str, sorted({case.ours.tokens for case in of_goal})))
    return (
        f"Prompts of {prompts} tokens, links up to 100 Mbit/s: this project on {NODES} nodes gives the first token "
        f"{sooner[0]:.2f} to {sooner[-1]:.2f} times as soon as the best peer on one node or {NODES} (bar: {BAR}x; "
        f"{judged(sooner, BAR)}), and writes further tokens {faster[0]:.2f} to {faster[-1]:.2f} times as "
        f"fast as the best peer on one node (goal: 1x; {judged(faster, 1.0)})."
    )


def judged(ascending: list[float], bar: float) -> str:
    if ascending[0] >= bar:
        return "reached"
    return "reached in some cases" if ascending[-1] >= bar else "not reached"


def of_texts(told: dict[str, Any]) -> str:
    """What texts.py has measured."""
    rows = [
        [name, f"{one['median_ms']:.0f}", f"{one['min_ms']:.0f}", f"{one['off']:.1e}"]
        for name, one in told["found"].items()
    ]
    title = f"{told['model']}, {told['items']} passages, CPU milliseconds; off by: the largest difference from `torch`."
    return f"{title}\n\n" + markdown(["", "median", "least", "off by"], rows)


def facts(figures: Figures) -> str:
    cpu = figures.machine
    turns = {n: [row.repeats for row in figures.rows.values() if row.tokens == n] for n in figures.lengths()}
    counts = "; ".join(
        f"{n} tokens: {' to '.join(map(str, sorted({min(of_n), max(of_n)})))}" for n, of_n in turns.items()
    )
    lines = [
        f"Machine: {cpu.get('cpu', '?')}, {cpu.get('cores', '?')} cores, {', '.join(cpu.get('features', []))}. "
        + ", ".join(f"{name} {version}" for name, version in cpu.get("versions", {}).items())
        + f". Medians over turns ({counts})."
    ]
    if figures.perplexity:
        known = figures.perplexity
        over = known["coded"] / known["exact"]
        lines.append(
            f"Codes of `astra`: {known['bits']:.1f} bits per token and block, perplexity {over:.3f}x of the exact "
            f"{known['exact']:.2f} on {NODES} ranks (float32)."
        )
    return " ".join(lines)


def rendered(figures: Figures, tokens: int, picture: str | None) -> str:
    parts = [reached(figures), facts(figures)]
    if picture:
        parts.append(f"![Time to the first token and per further token, by contestant and link]({picture})")
    parts += ["## The goal", goal(figures), "## Who is first", winners(figures)]
    parts += ["## One node of half a core", at_one(figures, "node", tokens)]
    for n in figures.lengths():
        parts += [f"## Four nodes of half a core, prompt of {n} tokens", on_four(figures, n)]
    parts += ["## One core: CPU seconds", at_one(figures, "core", tokens)]
    if figures.texts:
        parts += ["## Embeddings on one core", of_texts(figures.texts)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--write", type=Path, metavar="PAGE.md")
    parser.add_argument("--tokens", type=int, default=1024, help="default %(default)s")
    args = parser.parse_args()
    figures = read(args.work)
    if not figures.rows:
        sys.exit(f"page: {args.work}/cells has no cells; run measure.py first")
    if args.write is None:
        print(rendered(figures, args.tokens, None))
        return
    from chart import draw

    picture = args.write.with_suffix(".svg")
    before, mark, rest = args.write.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        sys.exit(f"page: {args.write} has no lines {BEGIN!r} and {END!r}; put them where the figures belong")
    whole.write_bytes(picture, draw(figures, args.tokens))
    text = rendered(figures, args.tokens, picture.name)
    whole.write_text(args.write, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
