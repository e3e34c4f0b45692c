"""The settings of a deck that the results depend on."""

from __future__ import annotations

from typing import Any

from astra_mpi.decks.deck import Deck

#: settings that do not change the results, or whose files are compared by content
_FREE = (
    "model.path",
    "model.codebooks",
    "input.path",
    "output.path",
    "run.resume",
    "run.threads",
    "task.stream",
    "run.watchdog",
)


def deck_state(deck: Deck) -> dict[str, Any]:
    """Section.key -> value, as JSON types, of what must be the same when a job goes on."""
    settings = {f"{section}.{key}": v for section, keys in deck.as_dict().items() for key, v in keys.items()}
    if settings.get("parallel.missing") == "auto":  # as earlier versions called it; codebooks say which it is
        settings["parallel.missing"] = "drop"
    return {name: value for name, value in settings.items() if name not in _FREE}
