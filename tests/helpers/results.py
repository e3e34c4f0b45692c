"""Results of a job of eight items, in parts of three."""

import numpy as np

from astra_mpi.job.results import Results

STATE = {"task.name": "embed", "model_digest": "m", "codec_digest": "c", "run.batch": 3, "parallel.weights": (1.0, 2.0)}


SUMMARY = {"choices": {"remote": "table"}, "versions": {}}


REPORT = {"choices": {"remote": "table"}}


def open_results(output, state=STATE, n_items=8, batch=3, resume=True):
    return Results(output, state, range(n_items), batch, resume)


def values(start, stop):
    return {"embedding": np.arange(start, stop, dtype=np.float32)[:, None] * [1, 10]}


def write(results, part):
    results.write(part, values(*results.span(part)), REPORT)
