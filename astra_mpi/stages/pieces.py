"""How a batch goes through stages of blocks: in parts of whole sequences and, with decoders, in pieces of these.

While the first part is in the first stage, the others idle, and at the end the first ones do. Small parts make that
short. But each pass has work that does not depend on its rows, so that they can be too small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from astra_mpi.caches.earlier import Earlier
from astra_mpi.device.formats.narrow import Narrow
from astra_mpi.device.packed import is_narrow
from astra_mpi.engine import Model
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.partition import displs, ranges
from astra_mpi.strategies.token_parallel import TokenParallel


class Piece(NamedTuple):
    """Some rows of a part that go through the blocks at once."""

    batch: Batch
    layout: Layout
    rows: np.ndarray | slice  # which rows of the part they are
    is_last: bool


def goes_in_pieces(model: Model) -> bool:
    """Whether a sequence's first rows can go on before its last ones are there. A length that decides how all tokens
    are turned must be known at once."""
    alone = model.exchange.size == 1 and isinstance(model.strategy, TokenParallel)
    return alone and model.family.causal and getattr(model.config, "rope_type", "") != "longrope"


def widens(model: Model) -> bool:
    """Whether its products make narrow weights float32 in every pass."""
    stored = (weight for block in model.blocks for weight in block.w.values())
    return not is_narrow(model.backend.kernels) and any(isinstance(weight, Narrow) for weight in stored)


def pieces_of(model: Model, batch: Batch, layout: Layout, n: int) -> Iterator[Piece]:
    """A part in n pieces at most, each of which finds the keys of those before it in the strategy."""
    strategy, longest = model.strategy, int(batch.lengths.max(initial=0))
    n = min(n, longest)
    if n < 2:
        yield Piece(batch, layout, slice(None), True)
        return
    assert isinstance(strategy, TokenParallel)
    firsts = displs(batch.lengths)[:-1]
    strategy.earlier = earlier = Earlier(model.config, len(model.blocks), batch.lengths, model.scratch)
    try:
        for k in range(n):
            starts, ends = batch.lengths * k // n, batch.lengths * (k + 1) // n
            earlier.begin(starts, ends)
            rows = ranges(firsts + starts, ends - starts)
            yield Piece(_rows_of(batch, rows, ends - starts), model.layout(ends - starts), rows, k == n - 1)
    finally:
        strategy.earlier, strategy.planned = None, layout


def _rows_of(batch: Batch, rows: np.ndarray, lengths: np.ndarray) -> Batch:
    """Of packed tokens those of `rows`, lengths (B,) of each sequence."""
    packed = batch.positions, batch.types, batch.position_rows
    return Batch(lengths, batch.values[rows], *(array if array is None else array[rows] for array in packed))
