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
