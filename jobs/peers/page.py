"""Tables, sentences and the chart of what measure.py has measured.

python jobs/peers/page.py WORK [--write docs/log/peers.md] [--tokens 1024]
Prints Markdown. --write puts it into that page, between the two lines that mark its place, and the chart beside the
page. What was not measured is a dash. --tokens: the prompt of the chart, and of the columns that have room for one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from contestants import CONTESTANTS, NODES, Contestant
from encoder_tables import ENCODERS, of_encoders, of_texts
from figures import Figures, Row, read
from verdicts import goal, markdown, peer_and_title, reached, seconds, winners

from astra_mpi.files import whole

BEGIN, END = "<!-- measured: jobs/peers/page.py writes this -->", "<!-- end -->"


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
            rest = [sent, f"{shown.peak_bytes / 1e6:.0f}", f"{slowest:.0f}", same(shown), over_exact(figures, one)]
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


def over_exact(figures: Figures, one: Contestant) -> str:
    over = figures.over_exact(one)
    return "-" if over is None else f"{over:.3f}x"


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
        lines.append(
            f"Codes of `astra`: {known['bits']:.1f} bits per token and block. Perplexity: on {NODES} ranks, over the "
            f"exact {known['exact']:.2f} of float32; what products and weights cost is counted with codes."
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
    cells = figures.encoders or {}
    for encoder, title in ENCODERS.items():
        if any(key.split()[1] == encoder for key in cells):
            parts += [f"## {title}", of_encoders(cells, encoder)]
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
