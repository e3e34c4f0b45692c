"""Verdicts on what measure.py has measured: who is first in each case, and whether the goal is reached."""

from __future__ import annotations

from dataclasses import dataclass

from contestants import CONTESTANTS, NODES, OURS, Contestant
from figures import Figures, Row

PERPLEXITY = 1.05  # over the exact one, at most
BAR = 2.5


@dataclass(frozen=True)
class Case:
    """A prompt and a link: this project on four nodes, where it has the whole answer soonest; the peer that begins
    soonest; the one that writes fastest."""

    ours: Row
    first: Row  # on one node or four
    writer: Row  # on one node

    @property
    def sooner(self) -> float:
        return self.first.first_s / self.ours.first_s

    @property
    def faster(self) -> float:
        return self.writer.token_s / self.ours.token_s


def within(figures: Figures) -> list[Contestant]:
    """Ours on four nodes that cost no more than the goal allows."""
    ours = [one for one in CONTESTANTS if one.peer == OURS and one.nodes == NODES]
    return [one for one in ours if (over := figures.over_exact(one)) is not None and over <= PERPLEXITY]


def cases(figures: Figures) -> list[Case]:
    found = []
    for tokens in figures.lengths():
        for link in figures.links():
            ours = [row for one in within(figures) if (row := figures.get(link, one, tokens))]
            first = figures.best("first_s", tokens, ("node", link), ours=False)
            writer = figures.best("token_s", tokens, ("node",), ours=False)
            if ours and first and writer:
                found.append(Case(min(ours, key=lambda row: row.first_s + row.new * row.token_s), first, writer))
    return found


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def seconds(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def peer_and_title(one: Contestant) -> str:
    return f"{one.peer}, {one.title}"


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
