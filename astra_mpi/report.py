"""What a pass is reported as: times, bytes and choices, for people and for a job's summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from astra_mpi.errors import raise_together
from astra_mpi.layout import Layout
from astra_mpi.turns import distinct_keys, formula_bytes
from astra_mpi.wire.laps import collect


def report_of(
    model: Any, layout: Layout, seconds: dict[str, float], counts: Sequence[float], failure: Exception | None = None
) -> dict[str, Any]:
    """Collective: the report of a pass that took `seconds` per phase, with the `counts` of its exchanges.

    model: a `Model`. failure: of this rank at the end of the pass, raised on all.
    """
    own = [float(failure is not None), model.weight_bytes, *counts]
    latency, told = collect(model.comm, seconds, own)
    if told[:, 0].any():
        raise_together(model.comm, failure)
    strategy, exchange = model.strategy, model.exchange
    described = strategy.describe()
    weights = model.cut_weights or "even"
    weights = weights if isinstance(weights, str) else [float(weight) for weight in weights]
    return {
        "family": model.config.family,
        "strategy": str(strategy.spec),
        "ranks": exchange.size,
        "tokens": [int(t) for t in layout.lengths],
        "formula_bytes": formula_bytes(model.taken, strategy, layout),
        **exchange.report(told[:, 2:]),
        "distinct_keys": distinct_keys(model.taken),
        "halves": len(model.taken) > 1,
        "latency_s": latency,
        "weight_bytes": [int(n) for n in told[:, 1]],
        **described,
        "choices": {**described["choices"], "weights": weights, **model.backend.choices, **own_choice(model)},
        "auto": model.chosen,
        "compute": model.chosen_compute,
    }


def own_choice(model: Any) -> dict[str, str | bool]:
    """What an unfinished job of a `Model` goes on with."""
    own: dict[str, str | bool] = {} if model.chosen is None else {"strategy": str(model.strategy.spec)}
    own |= {} if model.chosen_grid is None else {"grid": model.chosen_grid}
    own |= {} if model.chosen_halves is None else {"halves": model.chosen_halves}
    return own | ({"compute": model.backend.compute} if model.backend.xp is np else {})
