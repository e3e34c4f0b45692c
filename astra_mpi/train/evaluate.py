"""Validation: what P ranks would answer, in one process or its share of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from astra_mpi.config import require
from astra_mpi.partition import Cut
from astra_mpi.train.codes.codebooks import Codebooks
from astra_mpi.train.codes.sender import sender_for
from astra_mpi.train.cuts import coded_places, make_view
from astra_mpi.train.data import Items
from astra_mpi.train.losses import Metric
from astra_mpi.train.parallel import add_numbers
from astra_mpi.train.twin import Twin

if TYPE_CHECKING:
    from mpi4py import MPI

#: items measured at once: so many, or as many as have so many logits
EVAL_BATCH, EVAL_LOGITS = 128, 1 << 26


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
    """What `size` ranks answer, with codebooks at the exchange; without any, the exact answer.

    InputError on messages that are missing where codes are of predictions: each receiver then has states of its own.
    """
    alike = missing is None or codebooks is None or not codebooks.predicts
    require(
        alike, "lost messages of predicted codes are measured by `astra-mpi run` with network.loss, not in training"
    )
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
    sender = sender_for(codebooks, view, coded, twin.causal, observes=False)
    return twin(inputs, view, sender, codebooks.config.site)


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
    n = EVAL_BATCH
    if twin.causal:
        n = max(1, min(n, EVAL_LOGITS // int(items.lengths[order[-1]] * twin.config.vocab_size)))
    parts = [order[a : a + n] for a in range(0, len(order), n)]
    sums = np.zeros((2, metric.n_sums))
    for part in parts[comm.Get_rank() :: comm.Get_size()]:
        batch = items.part(part)
        inputs, keep = torch.from_numpy(batch.inputs).to(twin.device), torch.from_numpy(batch.keep).to(twin.device)
        labels = inputs if batch.labels is None else torch.from_numpy(batch.labels).to(twin.device)
        exact = answer(teacher or twin, None, inputs, batch.keep)
        sums[0] += metric.sums(exact, exact, labels, keep)
        if codebooks is not None:
            found = answer(twin, codebooks, inputs, batch.keep, size, replicas=replicas)
            sums[1] += metric.sums(found, exact, labels, keep)
    total = add_numbers(comm, sums.ravel()).reshape(sums.shape)
    figures = {} if metric.name == "cosine" else {f"{metric.name}_exact": metric.value(total[0])}
    if codebooks is not None:
        figures |= {metric.name: metric.value(total[1])} | metric.others(total[1])
    return figures
