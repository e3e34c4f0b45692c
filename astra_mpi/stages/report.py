"""The report of a pass over stages."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI

from astra_mpi.decode.request import reasons
from astra_mpi.layout import Layout
from astra_mpi.report import own_choice
from astra_mpi.wire.laps import PHASES, collect


class Tally:
    """What this rank's part of a pass has taken and sent, over the parts of a batch."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.counts: np.ndarray | None = None
        self.formula_bytes = 0
        pipeline.hop.n_bytes = 0

    def add(self, seconds: dict[str, float], layout: Layout | None = None) -> None:
        """A part that went through; layout: of one that went through the blocks."""
        for phase, taken_s in seconds.items():
            self.seconds[phase] += taken_s
        if layout is None:
            return
        model = self._pipeline.model
        own = np.array(model.exchange.counted())
        before = np.zeros(len(own)) if self.counts is None else self.counts
        self.counts = before + own
        self.counts[4] = own[4]  # the clock's speed
        self.formula_bytes += model.strategy.formula_bytes(layout)[layout.rank]


def report_of(pipeline: Any, lengths: np.ndarray, tally: Tally) -> dict[str, Any]:
    """Collective: as `Model.describe`, of all ranks of a replica, with the blocks of each stage and the bytes that were
    handed on. pipeline: a `Pipeline`."""
    model, grid = pipeline.model, pipeline.groups.grid
    assert tally.counts is not None
    described, n_blocks = model.strategy.describe(), len(model.blocks)
    distinct = model.strategy.distinct_keys()
    own = [
        float(model.weight_bytes),
        float(tally.formula_bytes),
        float(pipeline.hop.n_bytes),
        float(described["bits_per_token_per_block"]) * n_blocks,
        np.nan if distinct is None else distinct,
        *tally.counts,
    ]
    latency, told = collect(pipeline.comm, tally.seconds, own)
    weight, formula, handed, bits, keys = told[:, :5].T
    first = model.strategy.describe() if pipeline.stage == 0 else described
    mean_bits = float(bits[:: grid.tokens].sum()) / pipeline.config.n_layers
    known = keys[np.isfinite(keys)]
    weights = model.cut_weights or "even"
    return {
        "family": pipeline.config.family,
        "strategy": str(model.strategy.spec),
        "ranks": pipeline.comm.Get_size(),
        "grid": str(grid),
        "tokens": [int(t) for t in lengths],
        "formula_bytes": [int(n) for n in formula],
        **model.exchange.report(told[:, 5:]),
        "distinct_keys": float(known.mean()) if known.size else None,
        "latency_s": latency,
        "weight_bytes": [int(n) for n in weight],
        "blocks": [part.end - part.first for part in pipeline.parts],
        "handed_on": pipeline.handed_on,
        "handed_bytes": [int(n) for n in handed],
        **first,
        "bits_per_token_per_block": int(mean_bits) if mean_bits == int(mean_bits) else mean_bits,
        "choices": {
            **first["choices"],
            "weights": weights if isinstance(weights, str) else [float(weight) for weight in weights],
            **model.backend.choices,
            **own_choice(model),
            "stages": [part.end - part.first for part in pipeline.parts],
        },
        "auto": model.chosen,
        "compute": model.chosen_compute,
    }


def generation_report(generation: Any, new: np.ndarray) -> dict[str, Any]:
    """Collective: `report_of` the prefill, and under "generation" what the steps took. new (B, n): the new tokens, -1
    after an end. generation: a `Generation` that is over."""
    pipeline, comm, request = generation.pipeline, generation.comm, generation.request
    groups, config = generation.groups, pipeline.config
    later_handed = pipeline.hop.n_bytes + generation.back.n_bytes - generation.first_handed
    pipeline.hop.n_bytes = generation.first_handed
    lengths = np.concatenate([group.batch.lengths for group in groups])
    room = np.concatenate([group.room for group in groups])
    report = report_of(pipeline, lengths, generation.tally)
    cached = float(sum(group.mode.cache.n_bytes for group in groups if group.mode is not None))
    latency, told = collect(comm, generation.decoding, [cached, float(later_handed)])
    prefill_s = report["latency_s"]["total"]
    times_s = np.zeros(request.max_new_tokens)
    times_s[: len(generation.step_s)] = generation.step_s
    comm.Allreduce(MPI.IN_PLACE, times_s, op=MPI.MAX)
    n_new = (new >= 0).sum(axis=1)
    later_s = times_s[1 : int(n_new.max(initial=0))]
    row_bytes_kept = config.n_layers * 2 * config.d_kv * np.dtype(generation.model.backend.dtype).itemsize
    report["choices"] |= {"decode": "local"}
    report["generation"] = {
        "decode": "local",
        "far": request.far,
        "new_tokens": n_new.tolist(),
        "ended": reasons(request, room, new),
        "first_token_s": prefill_s + float(times_s[0]),
        "per_token_s": {
            "median": float(np.median(later_s)) if len(later_s) else None,
            "mean": float(np.mean(later_s)) if len(later_s) else None,
        },
        "latency_s": latency,
        "exchange_wait_s": latency["exchange_wait"],
        "decode_bytes": [0] * comm.Get_size(),
        "handed_bytes": told[:, 1].astype(int).tolist(),
        "id_bytes": [0] * comm.Get_size(),
        "cache_bytes": told[:, 0].astype(int).tolist(),
        "full_cache_bytes": int((lengths + room - 1).sum()) * row_bytes_kept,
    }
    return report
