"""Fills in docs/reference/decks.md from the dataclasses of the decks and the comments beside their fields."""

from __future__ import annotations

import ast
import dataclasses
import html
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from astra_mpi.decks import deck
from astra_mpi.decks.settings import describe
from astra_mpi.measure.sweep import deck as sweep_deck
from astra_mpi.train import deck as train_deck

#: mark in the page -> dataclass of a deck
DECKS = {
    "<!-- deck of run -->": deck.Deck,
    "<!-- deck of train -->": train_deck.TrainDeck,
    "<!-- deck of sweep -->": sweep_deck.SweepDeck,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with the sections of each deck in the place of its mark."""
    for mark, kind in DECKS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(_sections(kind)))
    return markdown


def _sections(kind: type) -> Iterator[str]:
    for name, hint in typing.get_type_hints(kind).items():
        members = typing.get_args(hint)  # of a mapping, name -> section
        section = members[1] if members else hint
        yield f"### `[{name}{'.NAME' if members else ''}]`\n\n| key | value | default | meaning |\n|---|---|---|---|"
        yield from (_row(*row) for row in _fields(section))
        yield ""


def _fields(section: type) -> Iterator[tuple[str, str, str, str]]:
    """Per key of a section: its name, what it takes, its default, and the comments of its lines in the source."""
    lines = textwrap.dedent(inspect.getsource(section)).splitlines()
    hints = typing.get_type_hints(section, include_extras=True)
    defaults = {field.name: field.default for field in dataclasses.fields(section)}
    for node in typing.cast(ast.ClassDef, ast.parse("\n".join(lines)).body[0]).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, default = node.target.id, defaults[node.target.id]
            shown = "" if default in (dataclasses.MISSING, None) else f"`{_toml(default)}`"
            yield name, describe(hints[name]), shown, _comment(lines, node)


def _comment(lines: list[str], node: ast.stmt) -> str:
    """The comment lines right above a field, and the comment at its end."""
    above: list[str] = []
    line = node.lineno - 2
    while line >= 0 and lines[line].lstrip().startswith("#"):
        above.insert(0, lines[line].lstrip("# "))
        line -= 1
    beside = re.search(r"  # (.*)$", lines[(node.end_lineno or node.lineno) - 1])
    parts = [" ".join(above), beside[1] if beside else ""]
    return ". ".join(part for part in parts if part)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _row(*cells: str) -> str:
    name, takes, default, meaning = (cell.replace("|", r"\|") for cell in cells)
    meaning = re.sub(r"docs/([\w/]*?([\w-]+)\.md)", r"[\2](../\1)", html.escape(meaning, quote=False))
    return f"| `{name}` | {html.escape(takes, quote=False)} | {default} | {meaning} |"
