"""Values as a user wrote them -> frozen dataclasses: types checked, errors that name key, origin and cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from astra_mpi.errors import InputError
from astra_mpi.files.utf8 import argument_text

Positive = Annotated[int, "at least 1"]


@dataclass(frozen=True)
class Given:
    """A value as written."""

    value: Any
    folder: Path  # where its relative paths start
    origin: str  # the file, or "command line"
    text: str | None = None  # on the command line: the bare text, for keys that take strings


def build(kind: type, given: Mapping[tuple[str, str], Given], source: str) -> Any:
    """(section, key) -> value as an instance of `kind`, a dataclass of dataclasses.

    source names what is to be completed when a required key is missing. InputError on unknown sections and keys, wrong
    types and missing keys.
    """
    sections = get_type_hints(kind)
    values: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for (section, key), item in given.items():
        check_name("section", section, sections, item.origin)
        hints = get_type_hints(sections[section], include_extras=True)
        check_name(f"key in [{section}]", key, hints, item.origin)
        values[section][key] = _checked(f"{section}.{key}", hints[key], item)
    for section, part in sections.items():
        hints = get_type_hints(part, include_extras=True)
        for field in fields(part):
            if field.default is MISSING and field.name not in values[section]:
                wanted = describe(hints[field.name])
                raise InputError(f"{source}: {section}.{field.name} is missing; give {wanted}")
    return kind(**{section: part(**values[section]) for section, part in sections.items()})


def check_name(what: str, name: str, known: Iterable[str], origin: str) -> None:
    """InputError unless `name` is known; it suggests the nearest name."""
    known = list(known)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        cure = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
        raise InputError(f"{origin}: unknown {what}: {name!r}; {cure}")


def _checked(name: str, hint: Any, item: Given) -> Any:
    for value in [item.value] if item.text is None else [item.value, item.text]:
        try:
            converted = _convert(value, hint, item.folder)
        except TypeError:
            continue
        try:
            return _as_text(converted)
        except InputError as exc:
            raise InputError(f"{item.origin}: {name}: {exc}") from exc
    raise InputError(f"{item.origin}: {name} = {item.value!r} does not fit; give {describe(hint)}")


def _as_text(value: Any) -> Any:
    """Strings, and those of a list, as Unicode: the command line may bring other bytes, which are for paths only."""
    if isinstance(value, tuple):
        return tuple(map(_as_text, value))
    return argument_text(value) if isinstance(value, str) and not value.isascii() else value


def _convert(value: Any, hint: Any, folder: Path) -> Any:
    """`value` as type `hint`; TypeError if it is of another."""
    kind, members = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        for member in members:
            try:
                return _convert(value, member, folder)
            except TypeError:
                continue
    elif kind is tuple and isinstance(value, list) and value:
        return tuple(_convert(item, members[0], folder) for item in value)
    elif hint is Path and isinstance(value, str) and value:
        return folder / Path(value).expanduser()
    elif hint is float and type(value) is int:
        return float(value)
    elif (
        (kind is Literal and value in members)
        or (hint == Positive and type(value) is int and value >= 1)
        or type(value) is hint
    ):
        return value
    raise TypeError(f"{value!r} is not {describe(hint)}")


def describe(hint: Any) -> str:
    """A type in words."""
    kind, members = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(describe(member) for member in members if member is not NoneType)
    if kind is Literal:
        return " or ".join(f'"{word}"' for word in members)
    if kind is tuple:
        lists: dict[Any, str] = {
            float: "a list of numbers",
            str: "a list of strings",
            Positive: "a list of positive integers",
        }
        return lists.get(members[0], f"a list, each {describe(members[0])}")
    words = {Path: "a path", str: "a string", bool: "true or false", int: "an integer", float: "a number"}
    words[Positive] = "a positive integer"
    return words.get(hint, str(hint))
