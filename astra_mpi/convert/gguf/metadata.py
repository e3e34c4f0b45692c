"""Metadata of a GGUF file by the keys of its architecture, checked where they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError

_REQUIRED = object()


class Metadata:
    """Values by key; it remembers which were read. Keys behind `@` are the architecture's own: `@.block_count`."""

    def __init__(self, path: Path, values: dict[str, Any], tensors: Mapping[str, Any]) -> None:
        self.path, self.values, self.tensors = path, values, tensors
        self.read = set[str]()
        self.architecture: str = self.text("general.architecture")

    def named(self, key: str) -> str:
        """The key as the file has it."""
        return key.replace("@", self.architecture, 1) if key.startswith("@") else key

    def has(self, tensor: str) -> bool:
        """Whether the file has a tensor of this name."""
        return tensor in self.tensors

    def get(self, key: str, default: Any = None) -> Any:
        name = self.named(key)
        self.read.add(name)
        return self.values.get(name, default)

    def _typed(self, key: str, default: Any, good: Any, what: str) -> Any:
        value = self.get(key)
        if value is None:
            if default is _REQUIRED:
                raise InputError(f"{self.path} has no {self.named(key)} in its metadata; download it again")
            return default
        require(good(value), f"{self.path}: {self.named(key)} = {shown(value)} must be {what}; download it again")
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        return self._typed(key, default, lambda value: isinstance(value, str), "a text")

    def flag(self, key: str, default: Any = None) -> Any:
        return self._typed(key, default, lambda value: isinstance(value, bool), "true or false")

    def integer(self, key: str, default: Any = _REQUIRED, least: int = 0) -> Any:
        def good(value: Any) -> bool:
            return type(value) is int and value >= least

        return self._typed(key, default, good, f"an integer >= {least}")

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """A finite number, with the digits that float32 has."""

        def good(value: Any) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

        value = self._typed(key, default, good, "a number")
        return value if value is default else shortest(value)

    def texts(self, key: str) -> list[str]:
        found: list[str] = self._typed(key, [], lambda value: isinstance(value, list), "a list of texts")
        return found

    def numbers(self, key: str) -> np.ndarray | None:
        found: np.ndarray | None = self._typed(
            key, None, lambda value: isinstance(value, np.ndarray) and value.dtype.kind in "iuf", "a list of numbers"
        )
        return found

    def same_in_blocks(self, key: str, least: int = 1) -> int:
        """An integer, or several that are equal, one per block."""
        value = self.get(key)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
            every = sorted(set(value.tolist()))
            require(
                len(every) == 1,
                f"{self.path}: {self.named(key)} differs from block to block ({every[0]} to {every[-1]}), which is not"
                " supported; use a model whose blocks are alike",
            )
            self.values[self.named(key)] = every[0]
        found: int = self.integer(key, least=least)
        return found


def shortest(value: float) -> float:
    """The number with the fewest digits that is the same as a float32: 1e-05, where 9.999999747378752e-06 is stored."""
    return float(str(np.float32(value))) if isinstance(value, float) and value == np.float32(value) else value


def shown(value: Any) -> str:
    text = repr(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
