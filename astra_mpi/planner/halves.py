"""Whether two half batches in turns are faster than a whole batch, predicted (docs/explanation/waiting.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from astra_mpi.costs.latency import Latency, in_turns, latency
from astra_mpi.costs.setting import Setting
from astra_mpi.costs.stages import block_weights
from astra_mpi.costs.strategies import cost_of
from astra_mpi.costs.work import Cost, Work
from astra_mpi.planner.advice import WORTH


def quickest(setting: Setting, strategy: str, counts: Sequence[int], accounting: str = "port") -> tuple[Latency, bool]:
    """What a pass of the batch takes, and whether that is as two halves in turns, which must gain enough. InputError
    where the strategy cannot be used."""
    whole = latency(cost_of(strategy, setting.job(counts), setting.coding), setting.speeds, setting.network, accounting)
    if setting.batch < 2 or setting.size == 1 or accounting == "paper" or whole.wait <= 0:
        return whole, False
    halved = in_turns(_halves(setting, strategy, counts), setting.speeds, setting.network, accounting)
    pays = whole.total >= WORTH * halved.total
    return (halved, True) if pays else (whole, False)


def _halves(setting: Setting, strategy: str, counts: Sequence[int]) -> list[Cost]:
    """The second half reads all weights once more."""
    sizes = setting.batch // 2, setting.batch - setting.batch // 2
    jobs = [replace(setting.job(counts), batch=n) for n in sizes]
    first, second = (cost_of(strategy, job, setting.coding) for job in jobs)
    n_laps = sum(stage.repeats for stage in second.stages)
    weights = block_weights(setting.shape) * second.block_share * setting.config.n_layers / n_laps
    again = Work(weights=weights * setting.weight_bytes / 4)
    stages = tuple(
        replace(stage, ranks=tuple(rank._replace(after=rank.after + again) for rank in stage.ranks))
        for stage in second.stages
    )
    return [first, replace(second, stages=stages)]
