"""A table of the kinds of a thing, whose classes are imported when they are asked for: `--help` waits for no NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any


class Registry(Mapping[str, Any]):
    """name -> class, in the order in which they were given."""

    def __init__(self, package: str, places: Mapping[str, str]) -> None:
        """places: name -> "module:Class", the module in `package`."""
        self._package, self._places = package, places
        self._found: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._found:
            module, _, wanted = self._places[name].partition(":")
            self._found[name] = getattr(import_module(f"{self._package}.{module}"), wanted)
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
