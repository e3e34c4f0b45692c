"""Fills in docs/reference/commands.md from the parsers of the command line."""

from __future__ import annotations

import argparse
import html
import re
from collections.abc import Iterator
from typing import Any

from astra_mpi import cli

MARK = "<!-- every command -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with all commands in the place of the mark."""
    return markdown.replace(MARK, "\n".join(_commands())) if MARK in markdown else markdown


def _commands() -> Iterator[str]:
    (subparsers,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in subparsers.choices.items():
        ranks = "mpirun -n P " if parser.get_default("spmd") else ""
        yield f"## {name}\n\n{_cell(parser.description or '')}\n"
        yield f"```text\n{ranks}{_usage(parser)}\n```\n"
        for group in parser._action_groups:
            actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS and a.dest != "help"]
            if actions:
                yield f"| {group.title} | |\n|---|---|"
                yield from (f"| {_names(a)} | {_cell(_help(parser, a))} |" for a in actions)
                yield ""


def _usage(parser: argparse.ArgumentParser) -> str:
    """The command and what it must be given; the tables have the rest."""
    words = [parser.prog]
    for action in parser._actions:
        if action.required or (not action.option_strings and action.nargs in ("?", "*")):
            value = " ".join(parser._get_formatter()._format_args(action, _value(action)).split())
            words.append(" ".join([*action.option_strings[:1], value]))
    return " ".join([*words, "[options]"])


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_value(action)}`"
    value = "" if action.nargs == 0 else f" {_value(action)}"
    return ", ".join(f"`{name}{value}`" for name in action.option_strings)


def _value(action: argparse.Action) -> str:
    if action.metavar:
        return str(action.metavar)
    if action.choices:
        return "|".join(map(str, action.choices))
    return action.dest.upper() if action.option_strings else action.dest


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _cell(text: str) -> str:
    """As it is: nothing in it is Markdown."""
    return re.sub(r"([|*_\[\]`])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
