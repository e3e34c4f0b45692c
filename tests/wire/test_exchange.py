"""The exchange by itself: what may be under way, and errors whose text is not Unicode."""

import numpy as np
import pytest

from astra_mpi.errors import AstraError, InputError, raise_together
from astra_mpi.network.clock import WallClock
from astra_mpi.wire.exchange import Exchange
from astra_mpi.wire.laps import Laps


@pytest.mark.mpi
def test_all_gather_of_uneven_messages(comm):
    exchange = Exchange(comm, Laps(WallClock()))
    counts = [(3 * rank + 1) % 5 for rank in range(comm.size)]
    for turn in range(3):
        parts = exchange.start(np.full(counts[comm.rank], comm.rank + turn, np.uint8), counts).wait()
        assert [part.tolist() for part in parts] == [[rank + turn] * n for rank, n in enumerate(counts)]


@pytest.mark.mpi
def test_one_exchange_at_a_time(comm):
    exchange = Exchange(comm, Laps(WallClock()))
    message, counts = np.zeros(2, np.uint8), [2] * comm.size
    pending = exchange.start(message, counts)
    with pytest.raises(RuntimeError, match="under way"):
        exchange.start(message, counts)
    with pytest.raises(AstraError, match="interrupted"):
        exchange.reset()
    pending.wait()
    exchange.reset()
    exchange.start(message, counts).wait()


@pytest.mark.mpi
def test_an_error_may_name_a_file_that_is_not_unicode(comm):
    failure = InputError("m\udcff.h5 does not exist") if comm.rank == comm.size - 1 else None
    with pytest.raises(InputError, match=r"m\\udcff.h5 does not exist"):
        raise_together(comm, failure)


@pytest.mark.mpi
def test_softmaxes_are_merged_whatever_their_scores(comm):
    """Two heads of width 3 over 5 keys per rank, none on the last of several; scores far beyond what exp takes."""
    exchange = Exchange(comm, Laps(WallClock()))
    size, rng = comm.Get_size(), np.random.default_rng(0)
    holders = max(1, size - 1)
    scores = rng.normal(size=(4, 2, holders, 5)) * 300
    values = rng.normal(size=(4, 2, holders, 5, 3))
    share = np.concatenate([np.zeros((4, 6)), np.full((4, 2), -np.inf), np.zeros((4, 2))], axis=1)
    if comm.rank < holders:
        mine = scores[:, :, comm.rank]
        peaks = mine.max(axis=2)
        weights = np.exp(mine - peaks[..., None])
        gathered = np.einsum("shk,shkd->shd", weights, values[:, :, comm.rank])
        share = np.concatenate([gathered.reshape(4, 6), peaks, weights.sum(axis=2)], axis=1)
    exchange.reset()
    merged, failed = exchange.merge(share.astype(np.float32), 2, False)
    flat = scores.reshape(4, 2, -1)
    weights = np.exp(flat - flat.max(axis=2, keepdims=True))
    want = np.einsum("shk,shkd->shd", weights / weights.sum(axis=2, keepdims=True), values.reshape(4, 2, -1, 3))
    np.testing.assert_allclose(merged, want.reshape(4, 6), atol=5e-4)
    assert not failed and exchange.traffic.other_bytes == (0 if size == 1 else share.size * 4)
