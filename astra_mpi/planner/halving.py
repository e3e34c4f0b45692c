"""`halves = "auto"`: a batch as two halves in turns, where that is predicted to be faster on these ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from astra_mpi.errors import InputError, collective
from astra_mpi.planner.auto import Workload, measured_setting
from astra_mpi.planner.halves import quickest
from astra_mpi.ranks.machine import ranks_here

if TYPE_CHECKING:
    from astra_mpi.engine import Model
    from astra_mpi.layout import Layout


class WherePays:
    """`Model.halves` that are predicted: decided by the first batch of a strategy on a network, and kept."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], bool] = {}

    def __call__(self, model: Model, layout: Layout) -> bool:
        """Collective."""
        key = str(model.strategy.spec), model.exchange.network.text
        if key not in self._known:
            self._known[key] = not _on_one_machine(model) and _pays(model, layout)
        return self._known[key]


def _on_one_machine(model: Model) -> bool:
    """Collective: ranks exchange through memory that they share, and there is nothing to wait for."""
    if model.exchange.network.rate is not None:
        return False
    return ranks_here(model.comm) == model.comm.Get_size()  # of all ranks or of none


def _pays(model: Model, layout: Layout) -> bool:
    """Collective: by a short measurement of ranks and, unless it is emulated, of their link."""
    longest = int(layout.lengths.argmax())
    workload = Workload(max(int(layout.lengths[longest]), 1), len(layout.counts))
    setting, _ = measured_setting(model, workload, model.exchange.comm)
    answer = np.zeros(1, np.int32)
    with collective(model.comm):
        if model.comm.Get_rank() == 0:
            accounting = model.exchange.network.accounting if model.exchange.link is not None else "port"
            by_tokens = model.strategy.name not in ("tp", "bp")
            counts = layout.counts[longest].tolist() if by_tokens else setting.even
            try:
                answer[0] = quickest(setting, str(model.strategy.spec), counts, accounting)[1]
            except InputError:  # nothing is known of its costs
                answer[0] = 0
    model.comm.Bcast(answer, root=0)
    return bool(answer[0])
