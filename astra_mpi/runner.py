"""The batch job, on all ranks: rank 0 reads a batch, everybody computes it, rank 0 keeps the answer."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.broadcast import broadcast_batch, broadcast_text
from astra_mpi.config import require
from astra_mpi.deck import Deck
from astra_mpi.errors import collective
from astra_mpi.inputs import open_input
from astra_mpi.models import FAMILIES
from astra_mpi.perplexity import WindowSource, open_windows, window_scores
from astra_mpi.progress import Progress
from astra_mpi.results import Results, finished_summary, write_json
from astra_mpi.shards import shard_items, take
from astra_mpi.signals import Interrupted, StopRequests
from astra_mpi.sources import Source
from astra_mpi.summary import summarise

if TYPE_CHECKING:
    from mpi4py import MPI

#: settings that do not change the results, or whose files are compared by content
_FREE = ("model.path", "model.codebooks", "input.path", "output.path", "run.resume", "run.threads")


def run(
    deck: Deck, model: Any, comm: MPI.Comm, *, threads: int = 1, open_source: Callable[..., Source] = open_input
) -> dict[str, Any]:
    """Run `deck` with the loaded `model`, from where an earlier run stopped. Collective.

    Writes deck.output.path and the summary beside it; returns the summary on every rank. threads: in force, for the
    record. InputError, on all ranks, on input the model cannot take or results that belong to other settings;
    Interrupted after SIGINT or SIGTERM, with the finished batches kept.
    """
    root = comm.Get_rank() == 0
    source: Source | None = None
    state, summary, items = {}, None, range(0)
    with collective(comm):
        check_task(deck, model.config)
        if root:
            if deck.task.name == "perplexity":
                source = open_windows(deck, model)
            else:
                source = open_source(deck.input, model.tokenizer, model.preprocess, model.config)
            state = _state(deck, model, source, comm.Get_size(), threads)
            items = shard_items(source.n_items, deck.input.shard, deck.input.shard_by)
            source = take(source, items)
            summary = finished_summary(deck.output.path, state) if deck.run.resume else None
            if summary is not None:
                print(f"{deck.output.path} is complete; run.resume=false makes it anew", file=sys.stderr, flush=True)
    summary = json.loads(broadcast_text(comm, json.dumps(summary)))
    if summary is None:
        summary = _run_batches(deck, model, comm, source, items, state)
    with collective(comm):
        if root:
            write_json(deck.output.path.with_suffix(".json"), summary)
    return summary


def check_task(deck: Deck, config: Any) -> None:
    """InputError if the model cannot do the task."""
    if getattr(FAMILIES.get(config.family), "causal", False):
        wanted, what = "perplexity", ""
    elif getattr(config, "n_classes", 0):
        wanted, what = "classify", " with a classifier"
    else:
        wanted, what = "embed", " without a classifier"
    misfit = f"task.name = '{deck.task.name}' does not fit {deck.model.path}: a {config.family} model{what}"
    require(deck.task.name == wanted, f"{misfit}; give {wanted}")


def _run_batches(
    deck: Deck, model: Any, comm: MPI.Comm, source: Source | None, items: range, state: dict[str, Any]
) -> dict[str, Any]:
    """All pending batches, then the joined results; returns the summary on every rank."""
    results: Results | None = None
    summary: dict[str, Any] = {}
    try:
        with collective(comm):
            if source is not None:
                results = Results(deck.output.path, state, items, deck.run.batch, deck.run.resume)
        with StopRequests() as stop:
            _loop(deck, model, comm, source, results, stop)
        with collective(comm):
            if results is not None and source is not None:
                summary = summarise(deck, model, results, source.labels)
                results.join(summary, deck.as_dict())
    finally:
        if results is not None:
            results.close()
    result: dict[str, Any] = json.loads(broadcast_text(comm, json.dumps(summary)))
    return result


def _loop(
    deck: Deck, model: Any, comm: MPI.Comm, source: Source | None, results: Results | None, stop: StopRequests
) -> None:
    """Batch by batch. `source` and `results` are rank 0's; all other ranks have None."""
    pending = json.loads(broadcast_text(comm, json.dumps(results.pending() if results else [])))
    progress = None
    if source is not None and results is not None:
        n_left = sum(b - a for a, b in map(results.span, pending))
        progress = Progress(source.n_items, source.n_items - n_left)
    for part in pending:
        inputs = mask = n_context = None
        with collective(comm):
            if source is not None and results is not None:
                inputs, mask = source.batch(*results.span(part))
                if isinstance(source, WindowSource):
                    n_context = source.n_context[slice(*results.span(part))]
        batch = broadcast_batch(comm, inputs, mask)
        perplexity = deck.task.name == "perplexity"
        answer = window_scores(model, comm, *batch, n_context) if perplexity else model(*batch)
        with collective(comm):
            if results is not None and progress is not None:
                results.write(part, _outputs(deck.task.name, answer), model.report)
                progress.advance(len(answer))
        signum = stop.agreed(comm)
        if signum and part != pending[-1]:
            raise Interrupted(
                f"stopped by {signal.Signals(signum).name} after batch {part + 1}; the same command goes on from there",
                signum,
            )
    if progress is not None:
        progress.close()


def _outputs(task: str, answer: np.ndarray) -> Mapping[str, np.ndarray]:
    if task == "classify":
        return {"logits": answer, "class": answer.argmax(axis=1).astype(np.int32)}
    if task == "perplexity":
        return {"nll": answer[:, 0], "scored": answer[:, 1].astype(np.int64)}
    return {"embedding": answer}


def _state(deck: Deck, model: Any, source: Source, size: int, threads: int) -> dict[str, Any]:
    """What must be the same when a job goes on."""
    settings = {f"{section}.{key}": v for section, keys in deck.as_dict().items() for key, v in keys.items()}
    return {
        **{name: value for name, value in settings.items() if name not in _FREE},
        "run.threads": threads,
        "ranks": size,
        "model_digest": model.digest,
        "codec_digest": model.codec_digest,
        "input_digest": source.digest,
        "input_items": source.n_items,
    }
