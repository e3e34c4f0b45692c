"""Inputs on which types of products are tried: those that the caller has, else random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from astra_mpi.engine import Model

#: items, and tokens of each, that are tried
ITEMS, TOKENS = 8, 96

#: for a model of one rank: what its inputs are in words, inputs (B, ..), and their mask (B, T) or None; None: has none
Items = Callable[["Model"], tuple[str, np.ndarray, np.ndarray | None] | None]


class Trial(NamedTuple):
    """One sequence or image after another, (1, ..) each with its mask (1, T) or None."""

    what: str  # in words
    inputs: list[np.ndarray]
    masks: list[np.ndarray | None]


def trial(model: Model, items: Items | None) -> Trial:
    found = items(model) if items is not None else None
    return _cut(*(found or _random(model.config)))


def _random(config: Any) -> tuple[str, np.ndarray, None]:
    rng = np.random.default_rng(0)
    if config.family == "vit":
        return "random images", rng.standard_normal((ITEMS, config.channels, *config.image_size), np.float32), None
    return "random tokens", rng.integers(0, config.vocab_size, (ITEMS, min(TOKENS, config.max_positions))), None


def _cut(what: str, inputs: np.ndarray, mask: np.ndarray | None) -> Trial:
    n = min(len(inputs), ITEMS)
    tokens = slice(None) if mask is None else slice(TOKENS)
    masks = [None if mask is None else mask[i : i + 1, tokens] for i in range(n)]
    return Trial(f"{n} {what}", [inputs[i : i + 1, tokens] for i in range(n)], masks)
