"""The batch job, on all ranks: rank 0 reads a batch, everybody computes it, rank 0 keeps the answer."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from astra_mpi.config import require
from astra_mpi.decks.deck import Deck
from astra_mpi.decks.fixed import deck_state
from astra_mpi.errors import collective
from astra_mpi.files.stuck import bounded
from astra_mpi.inputs.opening import open_input
from astra_mpi.inputs.shards import shard_items, take
from astra_mpi.inputs.sources import Source
from astra_mpi.job import log, shared
from astra_mpi.job.desk import Finished
from astra_mpi.job.progress import Progress
from astra_mpi.job.recorded import finished_summary, summary_path
from astra_mpi.job.results import Results, remove_leftovers, write_json
from astra_mpi.job.summary import summarise
from astra_mpi.job.tasks import TASKS, Embed, check_task
from astra_mpi.ranks.broadcast import broadcast_batch, broadcast_text
from astra_mpi.ranks.signals import Interrupted, StopRequests
from astra_mpi.ranks.watched import alone
from astra_mpi.replicas.replicas import Replicas
from astra_mpi.strategies import AUTO

if TYPE_CHECKING:
    from mpi4py import MPI


def run(
    deck: Deck,
    model: Any,
    comm: MPI.Comm,
    *,
    threads: int = 1,
    choices: Mapping[str, Any] | None = None,
    stop: StopRequests | None = None,
    open_source: Callable[..., Source] = open_input,
    choose: Callable[[Source | None, Results | None], None] | None = None,
) -> dict[str, Any]:
    """Run `deck` with the loaded `model`, from where an earlier run stopped. Collective.

    Writes deck.output.path and the summary beside it; returns the summary on every rank. threads: in force, for the
    record. choices: those that an earlier part of this job made. stop: where signals are noted already. choose:
    collective, for a model without a strategy yet: called once, before the first batch. InputError, on all ranks, on
    input the model cannot take or results that belong to other settings; Interrupted after a signal, with the finished
    batches kept.
    """
    root = comm.Get_rank() == 0
    source: Source | None = None
    state, summary, items = {}, None, range(0)
    with collective(comm):
        check_task(deck, model.config)
        worker = model.model if isinstance(model, Replicas) else model
        task = TASKS[deck.task.name](deck, worker, worker.comm, choices or {})
        if worker is not model:
            require(not deck.task.stream, "task.stream = true prints one text at a time; give a grid with one replica")
            task.talks = False
        if root:
            with alone(comm, f"reading {deck.input.path}"):
                source = task.open(open_source)
            state = {**_state(deck, model, source, comm.Get_size(), threads), **task.state}
            items = shard_items(source.n_items, deck.input.shard, deck.input.shard_by)
            source = take(source, items)
            log.event("input opened", items=source.n_items, shard=deck.input.shard, path=deck.input.path)
            summary = finished_summary(deck.output.path, state) if deck.run.resume else None
            if summary is not None:
                print(f"{deck.output.path} is complete; run.resume=false makes it anew", file=sys.stderr, flush=True)
                remove_leftovers(deck.output.path)
    summary = json.loads(broadcast_text(comm, json.dumps(summary)))
    if summary is None:
        with nullcontext(stop) if stop is not None else StopRequests() as requests:
            summary = _run_batches(deck, model, comm, task, source, items, state, requests, choose)
    with collective(comm):
        if root:
            write_json(summary_path(deck.output.path), summary)
    return summary


def _run_batches(
    deck: Deck,
    model: Any,
    comm: MPI.Comm,
    task: Embed,
    source: Source | None,
    items: range,
    state: dict[str, Any],
    stop: StopRequests,
    choose: Callable[[Source | None, Results | None], None] | None,
) -> dict[str, Any]:
    """All pending batches, then the joined results; returns the summary on every rank."""
    results: Results | None = None
    summary: dict[str, Any] = {}
    try:
        with collective(comm):
            if source is not None:
                with alone(comm, f"opening {deck.output.path}"):
                    results = Results(deck.output.path, state, items, deck.run.batch, deck.run.resume)
        if choose is not None:
            choose(source, results)
        _loop(model, comm, task, source, results, stop)
        log.event("batches done, results are joined", path=deck.output.path)
        with collective(comm), alone(comm, f"writing {deck.output.path}"):
            if results is not None and source is not None:
                with bounded(str(results.folder)):  # of whose parts all are read
                    summary = summarise(deck, model, results, source.labels)
                    results.join(summary, deck.as_dict())
    finally:
        if results is not None:
            results.close()
    result: dict[str, Any] = json.loads(broadcast_text(comm, json.dumps(summary)))
    return result


def _loop(
    model: Any, comm: MPI.Comm, task: Embed, source: Source | None, results: Results | None, stop: StopRequests
) -> None:
    """Batch by batch. `source` and `results` are rank 0's; all other ranks have None."""
    pending = json.loads(broadcast_text(comm, json.dumps(results.pending() if results else [])))
    progress = None
    if source is not None and results is not None and not task.talks:
        n_left = sum(b - a for a, b in map(results.span, pending))
        progress = Progress(source.n_items, source.n_items - n_left)
    log.event("batches begin", pending=len(pending), first=pending[0] + 1 if pending else None)

    def finished(part: int, report: Mapping[str, Any], n_items: int) -> None:
        if progress is not None:
            progress.advance(n_items)
        _log_batch(part, report, comm.Get_rank())

    loop = shared.loop if isinstance(model, Replicas) else _one_by_one
    signum, last = loop(model, task, source, results, pending, stop, finished)
    if signum:
        raise _interrupted(signum, last)
    if progress is not None:
        progress.close()


def _one_by_one(
    model: Any,
    task: Embed,
    source: Source | None,
    results: Results | None,
    pending: Sequence[int],
    stop: StopRequests,
    finished: Finished,
) -> tuple[int, int | None]:
    """Collective: all ranks compute every batch; as `shared.loop`."""
    comm, clock, last = model.comm, model.clock, None
    clock.meet(comm)
    origin_s = clock.now()
    for part in pending:
        if signum := stop.agreed(comm):
            return signum, last
        log.event("batch begins", batch=part + 1, level=logging.DEBUG)
        inputs = mask = known = None
        begin_s = clock.now() - origin_s
        with collective(comm):
            if source is not None and results is not None:
                span = range(*results.span(part))
                known = task.part(source, span, results.items[span.start : span.stop])
                with alone(comm, f"reading batch {part + 1}"):
                    inputs, mask = source.batch(span.start, span.stop)
        outputs = task.outputs(*broadcast_batch(comm, inputs, mask), known)
        times_s = {"begin_s": begin_s, "end_s": clock.latest(comm) - origin_s}
        with collective(comm):
            if results is not None:
                with alone(comm, f"writing batch {part + 1}"):
                    results.write(part, outputs, {**model.report, "span": {"run": results.lock.token, **times_s}})
            finished(part, model.report, len(known.numbers) if known is not None else 0)
        last = part
    return 0, last


def _log_batch(part: int, report: Mapping[str, Any], rank: int) -> None:
    """What a batch took, in all and on this rank."""
    latency = report.get("latency_s", {})
    computed = latency.get("compute_by_rank")
    facts = {f"{name}_s": latency.get(name) for name in ("total", "exchange_wait")}
    mine = computed[rank] if computed else None
    log.event("batch finished", batch=part + 1, items=len(report.get("tokens", ())), **facts, own_compute_s=mine)


def _interrupted(signum: int, last: int | None) -> Interrupted:
    where = "before the first batch" if last is None else f"after batch {last + 1}"
    return Interrupted(f"stopped by {signal.Signals(signum).name} {where}; the same command goes on from there", signum)


def _state(deck: Deck, model: Any, source: Source, size: int, threads: int) -> dict[str, Any]:
    """What must be the same when a job goes on."""
    settings = deck_state(deck)
    if deck.parallel.strategy == AUTO and model.codec_digest:  # what it stands for, whatever is measured
        settings["parallel.strategy"] = "astra"
    return {
        **settings,
        "run.threads": threads,
        "ranks": size,
        "model_digest": model.digest,
        "codec_digest": model.codec_digest,
        "input_digest": source.digest,
        "input_items": source.n_items,
    }
