"""What a causal model's token costs, for a cut in which all ranks finish together."""

from __future__ import annotations

from astra_mpi.costs.latency import assumed_speeds
from astra_mpi.costs.types import assumed
from astra_mpi.costs.wires import Wire
from astra_mpi.costs.work import Shape, Work
from astra_mpi.partition import TokenCost


def token_cost(shape: Shape, wire: Wire, compute: str = "float32") -> TokenCost:
    """Of a causal model's token in one block: operations counted as `plan` counts them, at the speeds it assumes of
    products of this type."""
    speeds = assumed(assumed_speeds(100.0), compute)  # any: what counts is how the kinds of work compare
    config = shape.config
    linear = 2 * shape.project_q + shape.project_kv + shape.mlp
    return TokenCost(
        own=speeds.seconds(Work(gemm=linear, elements=4 * config.d_model + config.d_ff) + wire.expect_own),
        score=speeds.seconds(Work(attention=2 * config.d_queries)),
        far=speeds.seconds((wire.decode + wire.expect_far) * (1 / wire.tokens_per_key)),
        send=speeds.seconds(wire.encode),
        sinks=wire.sinks,
    )
