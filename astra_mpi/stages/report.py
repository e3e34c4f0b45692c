"""The report of a pass over stages."""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.layout import Layout
from astra_mpi.report import own_choice
from astra_mpi.wire.laps import PHASES, collect


class Tally:
    """What this rank's part of a pass has taken and sent, over the parts of a batch."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.counts: np.ndarray | None = None
        self.formula_bytes = 0
        pipeline.hop.n_bytes = 0

    def add(self, seconds: dict[str, float], layout: Layout | None = None) -> None:
        """A part that went through; layout: of one that went through the blocks."""
        for phase, taken_s in seconds.items():
            self.seconds[phase] += taken_s
        if layout is None:
            return
        model = self._pipeline.model
        own = np.array(model.exchange.counted())
        before = np.zeros(len(own)) if self.counts is None else self.counts
        self.counts = before + own
        self.counts[4] = own[4]  # the clock's speed
        self.formula_bytes += model.strategy.formula_bytes(layout)[layout.rank]


def report_of(pipeline: Any, lengths: np.ndarray, tally: Tally) -> dict[str, Any]:
    """Collective: as `Model.describe`, of all ranks of a replica, with the blocks of each stage and the bytes that were
    handed on. pipeline: a `Pipeline`."""
    model, grid = pipeline.model, pipeline.groups.grid
    assert tally.counts is not None
    described, n_blocks = model.strategy.describe(), len(model.blocks)
    distinct = model.strategy.distinct_keys()
    own = [
        float(model.weight_bytes),
        float(tally.formula_bytes),
        float(pipeline.hop.n_bytes),
        float(described["bits_per_token_per_block"]) * n_blocks,
        np.nan if distinct is None else distinct,
        *tally.counts,
    ]
    latency, told = collect(pipeline.comm, tally.seconds, own)
    weight, formula, handed, bits, keys = told[:, :5].T
    first = model.strategy.describe() if pipeline.stage == 0 else described
    mean_bits = float(bits[:: grid.tokens].sum()) / pipeline.config.n_layers
    known = keys[np.isfinite(keys)]
    weights = model.cut_weights or "even"
    return {
        "family": pipeline.config.family,
        "strategy": str(model.strategy.spec),
        "ranks": pipeline.comm.Get_size(),
        "grid": str(grid),
        "tokens": [int(t) for t in lengths],
        "formula_bytes": [int(n) for n in formula],
        **model.exchange.report(told[:, 5:]),
        "distinct_keys": float(known.mean()) if known.size else None,
        "latency_s": latency,
        "weight_bytes": [int(n) for n in weight],
        "blocks": [part.end - part.first for part in pipeline.parts],
        "handed_on": pipeline.handed_on,
        "handed_bytes": [int(n) for n in handed],
        **first,
        "bits_per_token_per_block": int(mean_bits) if mean_bits == int(mean_bits) else mean_bits,
        "choices": {
            **first["choices"],
            "weights": weights if isinstance(weights, str) else [float(weight) for weight in weights],
            **model.backend.choices,
            **own_choice(model),
            "stages": [part.end - part.first for part in pipeline.parts],
        },
        "auto": model.chosen,
        "compute": model.chosen_compute,
    }
