"""What measured runs say, in sentences with figures."""

from __future__ import annotations

from astra_mpi.measure.charts import shown_conditions
from astra_mpi.measure.runs import Measured, Run

EXACT = ("single", "sp", "tp")


def verdict(measured: Measured) -> list[str]:
    """The fastest at both ends of the bandwidth, the largest speed-up, what failed, and how far the figures go."""
    sentences = [sentence for runs in shown_conditions(measured.runs) for sentence in _at(runs)]
    best = max((run for run in measured.runs if run.speedup), key=lambda run: run.speedup or 0.0, default=None)
    if best is not None and (best.speedup or 0.0) > 1 and len({run.at for run in measured.runs}) > 2:
        sentences.append(f"The largest speed-up of all is {best.speedup:.2f}x: {best.name}, {condition(best)}.")
    n_failed, n_all = len(measured.failures), len(measured.failures) + len(measured.runs)
    if n_failed:
        sentences.append(f"{n_failed} of {n_all} points failed; why is told below.")
    return sentences + _caveats(measured.runs)


def _at(runs: list[Run]) -> list[str]:
    """One condition."""
    single = next((run for run in runs if run.strategy == "single"), None)
    ranked = sorted(runs, key=lambda run: run.total_s)
    best, where = ranked[0], f"At {condition(runs[0])}"
    if len(runs) == 1:
        return [f"{where}, {best.name} takes {time(best.total_s)}{_times(best)}."]
    if best is single:
        return [
            f"{where}, one machine alone is fastest, {time(best.total_s)}; the best of the others, {ranked[1].name},"
            f" takes {time(ranked[1].total_s)}{_times(ranked[1])}."
        ]
    against = f" (one machine: {time(single.total_s)})" if single else ""
    first = (
        f"{where}, {best.name} is fastest: {time(best.total_s)}{_times(best)}{against};"
        f" {best.wait_s / best.total_s:.0%} of it is waiting for others."
    )
    rivals = [run for run in ranked if run.strategy.split(":")[0] not in (best.strategy.split(":")[0], "single")]
    return (
        [first, f"The best rival, {rivals[0].name}, takes {time(rivals[0].total_s)}{_times(rivals[0])}."]
        if rivals
        else [first]
    )


def _times(run: Run) -> str:
    return "" if run.speedup is None else f", {run.speedup:.3g} times as fast as one machine"


def _caveats(runs: tuple[Run, ...]) -> list[str]:
    found = []
    if any(run.at.clock == "virtual" for run in runs):
        found.append(
            "The virtual clock adds each rank's CPU time and a modelled link: it tells what separate machines would"
            " take, and was not measured on them."
        )
    if any(run.strategy.split(":")[0] not in EXACT or "int8" in run.strategy for run in runs):
        found.append("These are times and bytes; how good approximate answers are is not measured here.")
    return found


def condition(run: Run) -> str:
    at = run.at
    ranks = f"{at.ranks} rank{'s' * (at.ranks > 1)}"
    charged = f", {at.accounting} accounting" if at.accounting else ""
    return (
        f"{at.network}, {ranks}, {at.batch} x {at.tokens} tokens ({at.model}, {at.compute}, {at.clock} clock{charged})"
    )


def time(seconds: float) -> str:
    """12.3 ms or 4.56 s."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
