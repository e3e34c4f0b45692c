"""Passes of the oracle over the sequences that ranks computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.oracle.narrow import NARROW
from astra_mpi.oracle.reference import OracleResult, oracle, position_rows
from astra_mpi.oracle.spread import Spreads
from astra_mpi.oracle.tolerance import tolerance_of
from astra_mpi.partition import displs

if TYPE_CHECKING:
    from astra_mpi.layout import Layout


class Passes:
    """inputs (B, ..) and mask (B, T) or None: what ranks were given. compute: what is rounded in their products, as
    `narrow.py` names it. weights: makes them when they are needed, which is on one rank only."""

    def __init__(
        self,
        config: Any,
        inputs: np.ndarray,
        mask: np.ndarray | None,
        compute: str,
        weights: Callable[[], Mapping[str, np.ndarray]],
    ) -> None:
        self.config, self.inputs, self.mask, self.compute = config, inputs, mask, compute
        self.floor = tolerance_of(compute, config.n_layers)
        self._make_weights = weights
        self._exact: Spreads | None = None
        self._parts: dict[tuple[int, int], Passes] = {}

    def part(self, sequences: slice) -> Passes:
        """Over some of the sequences, which ranks computed by themselves."""
        span = sequences.start, sequences.stop
        if span == (0, len(self.inputs)):
            return self
        if span not in self._parts:
            mask = None if self.mask is None else self.mask[sequences]
            own = self.config, self.inputs[sequences], mask, self.compute, lambda: self._weights
            self._parts[span] = Passes(*own)
        return self._parts[span]

    @cached_property
    def _weights(self) -> Mapping[str, np.ndarray]:
        return self._make_weights()

    def of(self, layout: Layout, terms: dict[str, Any]) -> Spreads:
        """What a strategy that was planned so should compute. Exact strategies, which have no terms, share it."""
        if not terms and self._exact is not None:
            return self._exact
        rounded = self.compute in NARROW or ("codec" in terms and terms["codec"].config.predicts)
        spreads = Spreads(lambda **how: self._sequences(layout, terms, **how), self.floor, rounded=rounded)
        if not terms:
            self._exact = spreads
        return spreads

    def _sequences(
        self, layout: Layout, terms: dict[str, Any], seed: int | None = None, by_chance: bool = False
    ) -> list[OracleResult]:
        draw = None if seed is None else np.random.default_rng(seed)
        return [self._sequence(layout, terms, s, draw, by_chance) for s in range(len(layout.counts))]

    def _sequence(
        self, layout: Layout, terms: dict[str, Any], s: int, draw: np.random.Generator | None, by_chance: bool
    ) -> OracleResult:
        """Codes and rounded rows are the engine's own: the oracle uses and judges them."""
        tokens, first = self.inputs[s], displs(layout.lengths)
        options: dict[str, Any] = {**terms, "compute": self.compute, "draw": draw, "by_chance": by_chance}
        if self.mask is not None:
            keep = np.asarray(self.mask[s], bool)
            options["positions"] = np.flatnonzero(keep)
            options["position_rows"] = position_rows(self.config, tokens if tokens.ndim == 1 else tokens[:, 0], keep)
            tokens = tokens[keep]
        mine = layout.sequence_order[first[s] : first[s + 1]]
        for name in {"codes", "seen"} & terms.keys():
            options[name] = [block[mine] for block in terms[name]]
        ranks = layout.order[s]  # the oracle numbers ranks by the slices of this sequence that they have
        owner = np.repeat(np.arange(layout.size), layout.counts[s][ranks])
        if terms.get("missing") is not None:
            options["missing"] = [block[ranks][:, ranks] for block in terms["missing"]]
        return oracle(self.config, self._weights, tokens, owner, layout.size, **options)
