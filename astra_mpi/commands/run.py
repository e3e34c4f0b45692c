"""astra-mpi run: the batch job."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpi4py import MPI

    from astra_mpi.decks.deck import Deck
    from astra_mpi.engine import Model
    from astra_mpi.inputs.sources import Source
    from astra_mpi.job.results import Results
    from astra_mpi.ranks.signals import StopRequests

_CONDITIONS = ("network", "accounting", "clock", "speed", "deadline", "missing")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "run",
        help="the batch job of a deck: embed, classify, rerank, perplexity or generate",
        description="Runs a deck on these ranks. Start with mpirun or srun. A stopped run goes on where it was.",
    )
    parser.add_argument("deck", help="TOML file with [model] [input] [task] [parallel] [run] [output]")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="instead of the deck's value")
    parser.add_argument(
        "--shard", metavar="I/N", help="this run's share of the input, I from 0; array/N in a job array (input.shard)"
    )
    parser.set_defaults(run=run, spmd=True)


def run(args: argparse.Namespace, comm: MPI.Comm) -> int:
    from astra_mpi.ranks.signals import StopRequests

    with StopRequests() as stop:  # from the start, so that none ends a rank at any line
        summary = _run(args, comm, stop)
    if comm.Get_rank() == 0:
        print(json.dumps(summary))
    return 0


def _run(args: argparse.Namespace, comm: MPI.Comm, stop: StopRequests) -> dict[str, Any]:
    from astra_mpi.decks.deck import Deck, load_deck
    from astra_mpi.device.threads import set_threads
    from astra_mpi.errors import collective
    from astra_mpi.inputs.shards import resolve
    from astra_mpi.job import log, runner
    from astra_mpi.job.results import check_room
    from astra_mpi.job.strategy import advise_grid, choose_for_job, known_choices
    from astra_mpi.ranks.broadcast import broadcast_text
    from astra_mpi.ranks.watched import watched

    text = ""
    with collective(comm):
        if comm.Get_rank() == 0:
            overrides = [*args.overrides, *([f"input.shard={args.shard}"] if args.shard else [])]
            deck = resolve(load_deck(args.deck, overrides))
            check_room(deck.output.path)
            choices = known_choices(deck) if deck.run.resume else {}
            text = json.dumps([deck.as_dict(), choices])
    settings, choices = json.loads(broadcast_text(comm, text))
    deck = Deck.from_dict(settings)
    with collective(comm):
        threads = set_threads(deck.run.threads)
        limit_s = deck.run.watchdog_s
    comm = watched(comm, limit_s)
    model = _load(deck, choices, comm)
    if model.chosen_compute:
        log.event("type of products chosen", why=model.chosen_compute["why"])
    log.event("model loaded", path=deck.model.path, strategy=deck.parallel.spec, threads=threads)

    def choose(source: Source | None, results: Results | None) -> None:
        if deck.parallel.is_auto:
            choose_for_job(deck, model, comm, choices, source, results)
        advise_grid(deck, model, comm, source, results)

    return runner.run(deck, model, comm, threads=threads, choices=choices, stop=stop, choose=choose)


def _load(deck: Deck, choices: dict[str, Any], comm: MPI.Comm) -> Model:
    """Collective: the model as the deck says, with the choices that an earlier part of this job made.

    Without a strategy where the deck leaves it to `choose_for_job`, which knows the first batch.
    """
    from astra_mpi.device.backend import AUTO_COMPUTE
    from astra_mpi.job.tasks import first_items
    from astra_mpi.loading import load

    parallel = deck.parallel
    return load(
        str(deck.model.path),
        comm=comm,
        strategy=None if parallel.is_auto else parallel.spec,
        grid=choices.get("grid", parallel.grid),
        objective="throughput",
        stages=choices.get("stages", parallel.stages),
        handed_on=parallel.handed_on,
        backend=parallel.backend,
        transport=parallel.transport,
        precision=parallel.precision,
        compute=choices.get("compute", parallel.compute) if parallel.compute == AUTO_COMPUTE else parallel.compute,
        codebooks=str(deck.model.codebooks) if deck.model.codebooks else None,
        weights=choices.get("weights", parallel.weights),
        counted_keys=parallel.counted_keys,
        remote=choices.get("remote", parallel.remote),
        halves=choices.get("halves", parallel.halves),
        pooling=deck.task.pooling,
        normalize=deck.task.normalize,
        **{name: getattr(parallel, name) for name in _CONDITIONS},
        seed=deck.run.seed,
        items=partial(first_items, deck),
    )
