"""These ranks against the serial oracle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mpi4py import MPI

from astra_mpi.device.formats.blocks import Blocks
from astra_mpi.engine import Model
from astra_mpi.errors import collective
from astra_mpi.oracle.judge import Check, Measured, judge, worst
from astra_mpi.oracle.narrow import WEIGHTS_ONLY, InBlocks
from astra_mpi.oracle.passes import Passes
from astra_mpi.oracle.products import excess
from astra_mpi.ranks.broadcast import gather_texts
from astra_mpi.ranks.watched import alone
from astra_mpi.replicas.replicas import Replicas
from astra_mpi.stages.pipeline import Pipeline
from astra_mpi.stages.terms import terms_of_all
from astra_mpi.strategies import forms


def verify(
    model: Model | Replicas,
    inputs: np.ndarray,
    mask: np.ndarray | None,
    strategies: Sequence[str],
    counted_keys: bool = True,
    spread: bool = False,
) -> list[Check]:
    """Collective: run every strategy on these ranks and hold it against the oracle on rank 0.

    strategies: specs; a name without options stands for all its forms, for `astra` where codes have maps for late ones
    too. spread: the cut of `Model.generate`. Returns
    one check per form on rank 0, an empty list elsewhere. A form that cannot be used here is skipped: passed, with
    the reason. Of replicas each is held against an oracle of its own sequences; a check is of the one that is worst.
    Stages hand rows on in float32 from now on.
    """
    if isinstance(model, Replicas):
        return _verify_replicas(model, inputs, mask, strategies, counted_keys, spread)
    if isinstance(model, Pipeline):
        model.handed_on = "float32"  # the oracle does not round between stages
    passes = Passes(model.config, inputs, mask, _rounded(model), lambda: _weights(model))
    specs = [spec for text in strategies for spec in forms(text)]
    if model.codec is not None and model.codec.config.has_maps and "astra" in strategies:
        specs.append("astra:late")
    specs = list(dict.fromkeys(specs))
    checks = [_check(model, inputs, mask, spec, counted_keys, spread, passes) for spec in specs]
    return [check for check in (_check_products(model), *checks) if check is not None]


def _verify_replicas(
    model: Replicas,
    inputs: np.ndarray,
    mask: np.ndarray | None,
    strategies: Sequence[str],
    counted_keys: bool,
    spread: bool,
) -> list[Check]:
    own, checks = model.share(len(inputs)), []
    with collective(model.comm):
        if own.stop > own.start:
            its_mask = None if mask is None else mask[own]
            checks = verify(model.model, inputs[own], its_mask, strategies, counted_keys, spread)
    texts = gather_texts(model.groups.across, json.dumps([check.as_dict() for check in checks]))
    found = [[Check(**values) for values in json.loads(text)] for text in texts] if model.comm.Get_rank() == 0 else []
    return [worst(alike) for alike in zip(*filter(None, found), strict=True)]


def _check_products(model: Model) -> Check | None:
    """Collective: the products of every rank by themselves, where they are narrow; of the rank that is worst."""
    compute, comm = _compute(model), model.comm
    if compute == "float32":
        return None
    with collective(comm), alone(comm, "products alone"):
        mine, name = excess(model, compute, _as_held)
    every = np.empty(comm.Get_size())
    comm.Allgather(np.array([mine]), every)
    if comm.Get_rank() > 0:
        return None
    passed = bool((every <= 1).all())  # NaN is not
    worst = float(every.max())
    where = f" (rank 0: {name})" if name and worst == mine else f" (rank {int(every.argmax())})"
    reason = "" if passed else f"a product differs by {worst:.3g} times what its type may{where}"
    return Check("products", worst, worst, 0, 0.0, 0, 0, passed, reason, "over what is accepted of one product", 1.0)


def _check(
    model: Model,
    inputs: np.ndarray,
    mask: np.ndarray | None,
    spec: str,
    counted_keys: bool,
    spread: bool,
    passes: Passes,
) -> Check | None:
    on_root = model.comm.Get_rank() == 0
    if reason := model.obstacle(spec):
        return Check(spec, 0, 0, 0, 0, 0, 0, True, f"skipped: {reason}") if on_root else None
    model.use(spec, counted_keys=counted_keys)
    strategy = model.strategy
    strategy.record()
    answer, hidden = model(inputs, mask, gather=True, spread=spread)
    answers = _all_answers(model, answer)
    if isinstance(model, Pipeline):
        taken = [(slice(0, len(answer)), strategy, terms_of_all(model, strategy.oracle_terms()))]
    else:
        taken = [(part.sequences, own, own.oracle_terms()) for part, own in model.taken]
    if not on_root:
        return None
    with alone(model.comm, "the oracle"):
        missing = model.report["missing"]
        lost = f"{missing['lost']} lost and {missing['late']} late of {missing['messages']} messages" if missing else ""
        note, checks = strategy.latency_only or lost, []
        for sequences, own, terms in taken:
            measured = Measured(answers[:, sequences], hidden[sequences])
            checks.append(judge(spec, note, model.report, passes.part(sequences).of(own.planned, terms), measured))
        bytes_of_all = {name: getattr(checks[0], name) for name in ("contributed_bytes", "formula_bytes")}
        return replace(worst(checks), **bytes_of_all)


def _compute(model: Model) -> str:
    """What is rounded in its products, as the oracle names it (`narrow.py`)."""
    compute = model.backend.compute
    return WEIGHTS_ONLY[compute] if _widens(model) else compute


def _rounded(model: Model) -> str:
    """Collective: what is rounded in the products of some ranks, which may take different paths."""
    widen = np.array([_widens(model)])
    model.comm.Allreduce(MPI.IN_PLACE, widen, op=MPI.LAND)
    compute = model.backend.compute
    return WEIGHTS_ONLY[compute] if widen[0] else compute


def _widens(model: Model) -> bool:
    return str(model.backend.choices.get("products", "")).startswith("widened")


def _all_answers(model: Model, answer: np.ndarray) -> np.ndarray:
    """The answers of all ranks, (P, B, width), on every rank."""
    every = np.empty((model.comm.Get_size(), *answer.shape), answer.dtype)
    model.comm.Allgather(np.ascontiguousarray(answer), every)
    return every


def _weights(model: Model | Pipeline) -> dict[str, np.ndarray]:
    """Of the whole model; of one over stages, from its file."""
    read = model.read_whole if isinstance(model, Pipeline) else None
    weights = model.weights if read is None else read().weights
    return {name: _as_held(weight) for name, weight in weights.items()}


def _as_held(weight: Any) -> np.ndarray:
    """A weight as narrow types hold it."""
    wide = np.asarray(weight)
    return wide.view(InBlocks) if isinstance(weight, Blocks) else wide
