"""The points of a sweep: which ones a deck asks for, what their figures depend on, and where they are kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from astra_mpi import __version__
from astra_mpi.files import whole
from astra_mpi.measure.sweep.deck import SweepDeck
from astra_mpi.network.spec import parse_network
from astra_mpi.strategies import parse

CODED = ("astra",)  # strategies that codecs matter to


@dataclass(frozen=True)
class Point:
    """One strategy under one condition: what one launch of `astra-mpi bench` measures, beside `single`."""

    strategy: str
    network: str
    ranks: int
    tokens: int | None
    codec: str | None  # name of a codec table; None where the strategy has none

    def __str__(self) -> str:
        name = f"{self.strategy} {self.codec}" if self.codec else self.strategy
        tokens = "" if self.tokens is None else f", {self.tokens} tokens"
        return f"{name}, {self.network}, {self.ranks} rank{'s' * (self.ranks > 1)}{tokens}"


def points(deck: SweepDeck) -> list[Point]:
    """Those of few tokens first, else in the deck's order; none twice. InputError on an unknown strategy."""
    sweep = deck.sweep
    lengths: list[int | None] = [*sorted(deck.model.tokens)] if deck.model.tokens else [None]
    specs = [parse(text) for text in sweep.strategies]
    found = [
        Point(str(spec), network, ranks, tokens, codec)
        for tokens, ranks, network, spec in product(lengths, sweep.ranks, sweep.networks, specs)
        if _wanted(deck, network, ranks, tokens)
        for codec in (deck.codecs if spec.name in CODED else [None])
    ]
    return list(dict.fromkeys(found))


def _wanted(deck: SweepDeck, network: str, ranks: int, tokens: int | None) -> bool:
    at = deck.through
    pairs = ((at.network, network), (at.ranks, ranks), (at.tokens, tokens))
    return sum(wanted is not None and wanted != value for wanted, value in pairs) <= 1


def settings_of(deck: SweepDeck, point: Point, digests: Mapping[str, str]) -> dict[str, Any]:
    """Everything that the figures of a point depend on. digests: of model and codebooks."""
    sweep = deck.sweep
    names = (
        "clock",
        "accounting",
        "speed",
        "counted_keys",
        "repeats",
        "warmup",
        "seed",
        "backend",
        "compute",
        "threads",
    )
    return {
        **asdict(point),
        **{name: getattr(sweep, name) for name in names},
        "batch": deck.model.batch,
        "launcher": deck.launch.launcher,
        "trace": parse_network(point.network).digest,
        "version": __version__,
        **digests,
    }


def key_of(settings: Mapping[str, Any]) -> str:
    """A hash of the settings, the codec's name left out: its digest says what it is."""
    told = {name: value for name, value in settings.items() if name != "codec"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:20]


class Store:
    """A folder with a file per measured point, written under a temporary name and renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clean(self) -> None:
        """Remove what a killed sweep left behind."""
        for path in self.folder.glob("*.tmp"):
            path.unlink(missing_ok=True)

    def temporary(self, key: str) -> Path:
        return self.folder / f"{key}.{os.getpid()}.tmp"

    def get(self, key: str) -> dict[str, Any] | None:
        """What is known of a point; None if nothing, or if its file is damaged."""
        try:
            record = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and ("runs" in record or "failure" in record) else None

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        """AstraError if it cannot be written."""
        whole.write_text(self.folder / f"{key}.json", json.dumps(record, indent=1))
