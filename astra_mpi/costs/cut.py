"""What a causal model's token costs, for a cut in which all ranks finish together."""

from __future__ import annotations

from astra_mpi.costs.latency import assumed_speeds
from astra_mpi.costs.strategies import Wire
from astra_mpi.costs.work import Shape, Work
from astra_mpi.partition import TokenCost


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
