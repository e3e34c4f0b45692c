"""Hidden states or logits of whole sequences, from the rows of all ranks."""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.errors import collective
from astra_mpi.layout import Layout


def gathered(model: Any, rows: np.ndarray, layout: Layout) -> np.ndarray | None:
    """Collective: of this rank's rows (n, D) and those of all others, `whole` on rank 0. model: a `Model`."""
    every, classes = rows_of_all(model, rows, layout)
    hidden: np.ndarray | None = None
    with collective(model.comm):
        if every is not None:
            hidden = whole(model, every, classes, layout)
    return hidden


def rows_of_all(model: Any, rows: np.ndarray, layout: Layout) -> tuple[np.ndarray | None, np.ndarray]:
    """Collective: content rows (sum n_r, D) of all ranks on the first one, and class tokens (B, n_class D) on all."""
    fetch = model.backend.fetch
    with collective(model.comm):
        content = np.ascontiguousarray(fetch(layout.content(rows)))
        share = fetch(layout.class_share(rows))
        every = model.exchange.room(content, layout.token_counts)
    model.exchange.gather_rows(content, layout.token_counts, every)
    classes, _ = model.exchange.sum(share, False)
    return every, classes


def whole(model: Any, every: np.ndarray, classes: np.ndarray, layout: Layout) -> np.ndarray:
    """What `rows_of_all` gives -> hidden states after the last norm, or logits, (B, n_class + T, D or V), zero beyond a
    sequence's end."""
    put, fetch, lengths, n_class = model.backend.put, model.backend.fetch, layout.lengths, layout.n_class
    final = fetch(model.family.final(put(every[layout.sequence_order])))
    hidden = np.zeros((len(lengths), n_class + int(lengths.max(initial=0)), final.shape[1]), np.float32)
    present = np.arange(hidden.shape[1] - n_class) < lengths[:, None]  # (B, T)
    hidden[:, n_class:][present] = final
    if n_class:
        rows = put(classes.reshape(len(lengths) * n_class, -1))
        hidden[:, :n_class] = fetch(model.family.final(rows)).reshape(len(lengths), n_class, -1)
    return hidden
