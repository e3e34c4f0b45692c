"""What models of groups of ranks have in common: what they do not say themselves is that of this rank's own model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astra_mpi.engine import Model
    from astra_mpi.strategies import Strategy


class Around:
    """Set `model` first of all."""

    model: Model

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # not there yet
            raise AttributeError(name)
        return getattr(self.model, name)

    @property
    def strategy(self) -> Strategy:
        return self.model.strategy

    @strategy.setter
    def strategy(self, strategy: Strategy) -> None:
        self.model.strategy = strategy

    @property
    def chosen(self) -> dict[str, Any] | None:
        return self.model.chosen

    @chosen.setter
    def chosen(self, chosen: dict[str, Any] | None) -> None:
        self.model.chosen = chosen
