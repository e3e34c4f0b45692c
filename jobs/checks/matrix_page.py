"""The outcomes of the matrix as tables of docs/reference/support.md, and such tables read back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matrix_commands import YES, Outcome
from matrix_models import CODECS, MAPS, ONE_CODEC, PLAIN, Variant, variants

COLUMNS = tuple(dict.fromkeys(variant.column for variant in variants()))
_TITLES = {
    "commands": "Commands",
    "verify": "Strategies under `verify`",
    "bench": "Strategies under `bench`",
    "plan": "Strategies in `plan`",
    "plan --new-tokens": "Strategies in `plan --new-tokens`",
    "generate": "Strategies under `generate`",
    "run, embed": "Strategies under `run`, embed",
    "run, classify": "Strategies under `run`, classify",
    "run, perplexity": "Strategies under `run`, perplexity",
    "run, generate": "Strategies under `run`, generate",
}
_HEAD = """# What works with what

`mpirun -n 2 python jobs/checks/matrix.py --write docs/reference/support.md` made this page. It ran every cell on small
random models.

- `yes`: there was a result, and it was checked (see below).
- A number: the command ended with exit code 2, or skipped the row, for the [reason](#reasons) with this number.
- Two outcomes: different codebooks gave different outcomes.
- `-`: not run.

"+ codes" means that the model has codebooks. These were tried one after another: {names}. Of {single} only
residual normed was tried. "+ maps": codebooks with [maps](../explanation/waiting.md), {maps}.

What was checked:

- `verify` agrees with the oracle, also for the files of `convert` and `train`;
- results and merged files have finite numbers for all items;
- codebooks are of the kind that was asked for;
- times are above zero;
- for `info`, `doctor`, `sweep` and HTML pages only that they were made.
"""


def page(outcomes: Iterable[Outcome]) -> str:
    """Markdown."""
    cells: dict[str, dict[str, dict[str, set[str]]]] = {}
    for one in outcomes:
        row = cells.setdefault(one.table, {}).setdefault(one.row, {})
        row.setdefault(one.variant.column, set()).add(one.text)
    reasons: list[str] = []
    names = ", ".join(CODECS)
    lines = [_HEAD.format(names=names, single=" and ".join(ONE_CODEC), maps=", ".join(MAPS))]
    for table in sorted(cells, key=list(_TITLES).index):
        lines += [f"## {_TITLES[table]}", "", *_table(table, cells[table], reasons), ""]
    lines += ["## Reasons", "", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))]
    return "\n".join(lines) + "\n"


def _table(name: str, cells: dict[str, dict[str, set[str]]], reasons: list[str]) -> list[str]:
    columns = [column for column in COLUMNS if any(column in row for row in cells.values())]
    first = "command" if name == "commands" else "strategy"
    lines = [_line([first, *columns]), _line(["---"] * (1 + len(columns)))]
    for row, found in cells.items():
        lines.append(_line([row, *(_cell(found.get(column, set()), reasons) for column in columns)]))
    return lines


def _line(words: Sequence[str]) -> str:
    return "| " + " | ".join(words) + " |"


def _cell(texts: set[str], reasons: list[str]) -> str:
    return ", ".join(_short(text, reasons) for text in sorted(texts)) or "-"


def _short(text: str, reasons: list[str]) -> str:
    if text == YES:
        return YES
    if text not in reasons:
        reasons.append(text)
    return str(reasons.index(text) + 1)


def read_page(text: str) -> dict[tuple[str, str, str], set[str]]:
    """(table, row, column) -> outcomes, reasons written out."""
    names = {title: name for name, title in _TITLES.items()}
    reasons = dict(line.split(". ", 1) for line in text.split("## Reasons")[1].splitlines() if ". " in line)
    found: dict[tuple[str, str, str], set[str]] = {}
    table, columns = "", []
    for line in text.split("## Reasons")[0].splitlines():
        words = [word.strip() for word in line.strip("|").split("|")]
        if line.startswith("## "):
            table = names[line[3:]]
        elif line.startswith(("| command", "| strategy")):
            columns = words[1:]
        elif line.startswith("| ") and not line.startswith("| ---"):
            for column, cell in zip(columns, words[1:], strict=True):
                if cell != "-":
                    found[table, words[0], column] = {reasons.get(word, word) for word in cell.split(", ")}
    return found


def kept(text: str, columns: Iterable[str]) -> list[Outcome]:
    """What a page says in other columns than these."""
    outcomes = []
    for (table, row, column), texts in read_page(text).items():
        family, _, coded = column.partition(" + ")
        if column not in columns:
            codec = {"codes": next(iter(CODECS)), "maps": next(iter(MAPS))}.get(coded, PLAIN)
            variant = Variant(family, codec)
            outcomes += [Outcome(table, row, variant, said) for said in sorted(texts)]
    return outcomes
