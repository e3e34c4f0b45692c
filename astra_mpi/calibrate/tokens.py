"""What codebooks are fitted to: which items, in which order, and whether they are enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from astra_mpi.errors import collective
from astra_mpi.inputs.sources import Source
from astra_mpi.ranks.broadcast import broadcast_batch, broadcast_integers
from astra_mpi.ranks.watched import alone

if TYPE_CHECKING:
    from mpi4py import MPI

#: model inputs and mask, as `Model` takes them
Batch = tuple[np.ndarray, np.ndarray | None]
Batches = Iterable[Batch]

#: tokens per entry that a codebook should be fitted to, and with how many the command says that they are few. Error on
#: held-out tokens of all-MiniLM-L6-v2 over that with four times 128: 6 to 8% more, with 64 11 to 13%, with 39 19 to 22%
TOKENS_PER_ENTRY, FEW_TOKENS_PER_ENTRY = 128, 64


def too_few(n_tokens: int, wanted: int, n_entries: int, data: str, option: str) -> str:
    """What to say of codebooks of `n_entries` fitted to `n_tokens` of the `wanted` ones; "" if those are enough.

    data: where they come from; option: what asks for more.
    """
    if n_tokens >= FEW_TOKENS_PER_ENTRY * n_entries:
        return ""
    needed = TOKENS_PER_ENTRY * n_entries
    more = f"give {option} {needed}" if wanted < needed else ""
    if n_tokens < wanted:
        more = " and ".join(filter(None, [f"{data} has no more, give more of it", more]))
    repeated = ", with entries that repeat others" if n_tokens < n_entries else ""
    return f"{n_tokens} tokens are few for codebooks of {n_entries} entries{repeated}; {needed} are better: {more}"


def shuffled_batches(source: Source, seed: int, batch: int = 8) -> Iterator[Batch]:
    """All items of `source` once, batches in random order."""
    starts = np.arange(0, source.n_items, batch)
    np.random.default_rng(seed).shuffle(starts)
    for start in starts:
        yield source.batch(int(start), min(int(start) + batch, source.n_items))


def shared(comm: MPI.Comm, batches: Iterator[Batch] | None) -> Iterator[Batch]:
    """Collective, batch by batch: rank 0's `batches` on every rank (None elsewhere)."""
    while True:
        batch: Batch | None = None
        with collective(comm):
            if batches is not None:
                with alone(comm, "reading a batch"):
                    batch = next(batches, None)
        if not broadcast_integers(comm, None if batch is None else np.ones(1, np.int64), 1)[0]:
            return
        yield broadcast_batch(comm, *(batch or (None, None)))
