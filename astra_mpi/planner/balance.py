"""How fast the ranks are, measured, and what tokens cost them, so that a cut lets all of them finish together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from astra_mpi.errors import collective
from astra_mpi.planner.probes import one_pass

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
        one_pass(model.blocks[0], x)
    comm.Barrier()
    with collective(comm), clock.running():
        n_passes, start_s = 0, clock.now()
        while clock.now() - start_s < _LEAST_S:
            one_pass(model.blocks[0], x)
            n_passes += 1
        passes_per_s = n_passes / (clock.now() - start_s)
    comm.Allgather(np.array([passes_per_s]), every)
    return [float(speed) for speed in np.round(every / every.max(), 3)]
