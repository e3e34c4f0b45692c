"""How fast the ranks are, measured, and what tokens cost them, so that a cut lets all of them finish together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from astra_mpi.costs.latency import assumed_speeds
from astra_mpi.costs.strategies import Wire
from astra_mpi.costs.work import Shape, Work
from astra_mpi.device.xp import settle
from astra_mpi.errors import collective
from astra_mpi.partition import TokenCost

if TYPE_CHECKING:
    from astra_mpi.engine import Model

_ROWS = 128
#: long enough for CPU quotas, which are handed out in periods of up to 100 ms, to show
_LEAST_S = 0.5


def rank_speeds(model: Model) -> list[float]:
    """Collective: the speed of every rank relative to the fastest, three decimals, the same on all ranks.

    All ranks at once pass the same rows through the first block again and again, for `_LEAST_S` seconds of the model's
    clock. What a token costs is counted, not measured (`token_cost`, and docs/explanation/equations.md).
    """
    clock, comm = model.clock, model.comm
    every = np.empty(comm.Get_size())
    with collective(comm):
        x = model.backend.put(np.random.default_rng(0).standard_normal((_ROWS, model.config.d_model), dtype=np.float32))
        _one_pass(model, x)
    comm.Barrier()
    with collective(comm), clock.running():
        n_passes, start_s = 0, clock.now()
        while clock.now() - start_s < _LEAST_S:
            _one_pass(model, x)
            n_passes += 1
        passes_per_s = n_passes / (clock.now() - start_s)
    comm.Allgather(np.array([passes_per_s]), every)
    return [float(speed) for speed in np.round(every / every.max(), 3)]


def token_cost(shape: Shape, wire: Wire) -> TokenCost:
    """Of a causal model's token in one block: operations counted as `plan` counts them, at the speeds it assumes."""
    config, speeds = shape.config, assumed_speeds(100.0)  # any: what counts is how the kinds of work compare
    linear = 2 * shape.project_q + shape.project_kv + shape.mlp
    return TokenCost(
        own=speeds.seconds(Work(gemm=linear, elements=4 * config.d_model + config.d_ff)),
        score=speeds.seconds(Work(attention=2 * config.d_queries)),
        far=speeds.seconds(wire.decode * (1 / wire.tokens_per_key)),
        send=speeds.seconds(wire.encode),
    )


def _one_pass(model: Model, x: np.ndarray) -> None:
    block = model.blocks[0]
    queries, _ = block.queries_keys_values(block.attention_input(x))
    block.output(x.copy(), model.backend.xp.ascontiguousarray(queries))
    settle(queries)
