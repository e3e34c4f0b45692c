"""What a batch job leaves to the program to choose, its strategy and its type of products: chosen once, and kept when
the job goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from astra_mpi.config import require
from astra_mpi.decks.deck import Deck
from astra_mpi.decks.fixed import deck_state
from astra_mpi.device.backend import AUTO_COMPUTE
from astra_mpi.errors import InputError, collective
from astra_mpi.inputs.shards import other_shards
from astra_mpi.inputs.sources import Source
from astra_mpi.job import log
from astra_mpi.job.recorded import recorded_choices, recorded_job
from astra_mpi.job.results import Results
from astra_mpi.planner.auto import Workload, adopt, decide, hint, reason, usual
from astra_mpi.planner.job_grid import better_grid
from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.ranks.grid import parse_grid
from astra_mpi.ranks.watched import alone
from astra_mpi.strategies import AUTO, coded_form, parse_request

if TYPE_CHECKING:
    from mpi4py import MPI

    from astra_mpi.engine import Model

#: settings in which shards differ, and one that may stand for another until the model is there
_UNKNOWN_YET = ("input.shard", "parallel.strategy")


def known_choices(deck: Deck) -> dict[str, Any]:
    """What the finished batches of this job record; of the type of products, else what another shard has chosen.

    The model is not known yet: that it is the same is checked when the results are opened.
    """
    choices = recorded_choices(deck.output.path)
    if deck.parallel.compute != AUTO_COMPUTE or "compute" in choices or deck.input.shard is None:
        return choices
    mine = {name: value for name, value in deck_state(deck).items() if name not in _UNKNOWN_YET}
    for path in other_shards(deck.output.path, deck.input.shard):
        try:
            state, theirs = recorded_job(path)
        except InputError:
            continue
        if "compute" in theirs and all(state.get(name) == value for name, value in mine.items()):
            return choices | {"compute": theirs["compute"]}
    return choices


def choose_for_job(
    deck: Deck,
    model: Model,
    comm: MPI.Comm,
    choices: Mapping[str, Any],
    source: Source | None,
    results: Results | None,
) -> None:
    """Collective: use what an earlier part of this job, or another shard of it, has chosen, else what `auto` chooses.

    choices: those of the earlier part. source, results: rank 0's, None elsewhere.
    """
    parallel = deck.parallel
    options = {"counted_keys": parallel.counted_keys, "remote": choices.get("remote", parallel.remote)}
    told: dict[str, Any] = {}
    with collective(comm):
        _check(deck, model)
        if source is not None and results is not None:
            known = choices.get("strategy") or _of_another_shard(deck, results)
            if known:
                told = {"strategy": known, "by": "an earlier part of this job"}
            else:
                with alone(comm, "reading the first batch"):
                    told = asdict(_workload(deck, model.config, source, results))
    told = json.loads(broadcast_text(comm, json.dumps(told)))
    if "strategy" in told:
        adopt(model, told, **options)
    else:
        decide(model, Workload(**told), coded_form(parse_request(parallel.spec)), **options)
    _tell(model, comm)


def advise_grid(deck: Deck, model: Any, comm: MPI.Comm, source: Source | None, results: Results | None) -> None:
    """Collective: name a grid with which this job is predicted to end much sooner, on stderr and in the log.

    source, results: rank 0's, None elsewhere. A job of one batch, or on one rank, or of replicas of one rank, has
    nothing to gain.
    """
    size = comm.Get_size()
    if deck.parallel.grid == AUTO:
        return
    grid, told = parse_grid(deck.parallel.grid, size), [0, {}]
    if grid.replicas == size or grid.stages > 1:
        return
    with collective(comm):
        if source is not None and results is not None and len(results.pending()) > 1:
            with alone(comm, "reading the first batch"):
                told = [source.n_items, asdict(_workload(deck, model.config, source, results))]
    n_items, workload = json.loads(broadcast_text(comm, json.dumps(told)))
    if not n_items:
        return
    line = better_grid(model, comm, grid, Workload(**workload), n_items)
    if line and comm.Get_rank() == 0:
        print(line, file=sys.stderr, flush=True)
        log.event("another grid is faster", why=line.removeprefix("astra-mpi: "))


def _check(deck: Deck, model: Model) -> None:
    """InputError on options of a strategy that is not named; beside codebooks they have always been left aside."""
    given = [key for key in ("gather", "wire", "ratio") if getattr(deck.parallel, key) is not None]
    require(
        not given or model.codec is not None,
        f"parallel.{', '.join(given)} without a strategy that takes it; give parallel.strategy = sp or segment_means",
    )


def _workload(deck: Deck, config: Any, source: Source, results: Results) -> Workload:
    """That of the first batch to come. Images are all cut into as many patches."""
    part = next(iter(results.pending()), 0)
    inputs, mask = source.batch(*results.span(part))
    if inputs.ndim == 4:
        return usual(config, batch=len(inputs))
    longest = inputs.shape[1] if mask is None else int(mask.sum(axis=1).max(initial=1))
    task = deck.task
    n_new = task.max_new_tokens or 0 if task.name == "generate" else 0
    return Workload(max(longest, 1), len(inputs), n_new, task.decode, task.name == "perplexity")


def _of_another_shard(deck: Deck, results: Results) -> str | None:
    """Which strategy another shard of this very job has chosen, on as many ranks; None: not known."""
    if deck.input.shard is None or not deck.run.resume:
        return None
    mine = _same_in_all(results.state)
    for path in other_shards(deck.output.path, deck.input.shard):
        try:
            state, choices = recorded_job(path)
        except InputError:
            continue
        if _same_in_all(state) == mine and "strategy" in choices:
            return str(choices["strategy"])
    return None


def _same_in_all(state: Mapping[str, Any]) -> dict[str, Any]:
    """What shards of one job have in common."""
    alike: dict[str, Any] = json.loads(json.dumps({name: v for name, v in state.items() if name != "input.shard"}))
    return alike


def _tell(model: Model, comm: MPI.Comm) -> None:
    log.event("strategy chosen", strategy=str(model.strategy.spec), why=reason(model.chosen))
    line = hint(model.chosen, "parallel.strategy=")
    if line and comm.Get_rank() == 0:
        print(line, file=sys.stderr, flush=True)
