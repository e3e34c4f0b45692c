"""Validation: what P ranks would answer, in one process or its share of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from astra_mpi.partition import Cut
from astra_mpi.train.cuts import coded_places, make_view
from astra_mpi.train.data import Items
from astra_mpi.train.losses import Metric
from astra_mpi.train.parallel import add_numbers
from astra_mpi.train.quantise import Codebooks, Sender
from astra_mpi.train.twin import Twin

if TYPE_CHECKING:
    from mpi4py import MPI

EVAL_BATCH = 128


@torch.no_grad()
def answer(
    twin: Twin,
    codebooks: Codebooks | None,
    inputs: torch.Tensor,
    keep: np.ndarray,
    size: int = 1,
    slices: Cut = None,
    *,
    replicas: int | None = None,
    missing: np.ndarray | None = None,
) -> torch.Tensor:
    """What `size` ranks answer, with codebooks at the exchange; without any, the exact answer."""
    sinks = twin.sinks(None if codebooks is None else codebooks.config)
    view = make_view(
        keep,
        twin.config.n_class,
        size,
        slices,
        causal=twin.causal,
        sends=codebooks is not None,
        replicas=replicas,
        missing=missing,
        sinks=sinks,
        device=twin.device,
    )
    if codebooks is None:
        return twin(inputs, view)
    if view.received is not None:
        view.received[: codebooks.first_coded] = True  # nothing is sent there
    coded = coded_places(keep, twin.config.n_class, sinks)
    real = None if coded.all() else torch.from_numpy(coded).to(twin.device)
    return twin(inputs, view, Sender(codebooks, real), codebooks.config.site)


def evaluate(
    twin: Twin,
    codebooks: Codebooks | None,
    items: Items,
    chosen: np.ndarray,
    metric: Metric,
    comm: MPI.Comm,
    size: int,
    *,
    teacher: Twin | None = None,
    replicas: int | None = None,
) -> dict[str, float]:
    """Collective: the metric of the items `chosen` at `size` ranks, and of the exact model where it has one."""
    order = chosen[np.argsort(items.lengths[chosen], kind="stable")]
    parts = [order[a : a + EVAL_BATCH] for a in range(0, len(order), EVAL_BATCH)]
    sums = np.zeros((2, 2))
    for part in parts[comm.Get_rank() :: comm.Get_size()]:
        batch = items.part(part)
        inputs, keep = torch.from_numpy(batch.inputs).to(twin.device), torch.from_numpy(batch.keep).to(twin.device)
        labels = inputs if batch.labels is None else torch.from_numpy(batch.labels).to(twin.device)
        exact = answer(teacher or twin, None, inputs, batch.keep)
        sums[0] += metric.sums(exact, exact, labels, keep)
        if codebooks is not None:
            found = answer(twin, codebooks, inputs, batch.keep, size, replicas=replicas)
            sums[1] += metric.sums(found, exact, labels, keep)
    total = add_numbers(comm, sums.ravel()).reshape(2, 2)
    figures = {} if metric.name == "cosine" else {f"{metric.name}_exact": metric.value(total[0])}
    if codebooks is not None:
        figures[metric.name] = metric.value(total[1])
    return figures
