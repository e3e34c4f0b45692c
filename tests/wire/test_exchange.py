"""The exchange by itself: what may be under way, how a pass ends, and errors whose text is not Unicode."""

import numpy as np
import pytest

from astra_mpi.costs.latency import Network as Costed
from astra_mpi.costs.latency import transfer_s
from astra_mpi.costs.work import Transfer
from astra_mpi.errors import AstraError, InputError, raise_together
from astra_mpi.network.clock import WallClock
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.wire.exchange import Exchange
from astra_mpi.wire.laps import Laps


def exchange_over(comm, network):
    virtual = network != "real"
    conditions = parse_conditions(comm.Get_size(), network=network, clock="virtual" if virtual else "wall")
    exchange = Exchange(comm, Laps(conditions.make_clock(comm)))
    exchange.connect(conditions.network)
    return exchange


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


@pytest.mark.mpi
@pytest.mark.parametrize("network", ["real", "1Mbps,rtt=1s", "1Mbps,rtt=0s", "1Mbps,rtt=10ms,shared"])
def test_shares_are_combined_to_the_same_bits_in_one_hop_and_in_two(comm, network):
    """Whatever the size of a message and the network: in order of ranks, on every rank, in the time of its hops."""
    n_ranks = comm.Get_size()
    exchange = exchange_over(comm, network)
    shares = np.random.default_rng(3).normal(size=(n_ranks, 5, 9001)).astype(np.float32) * 10.0 ** np.arange(5)[:, None]
    want = shares[0].copy()
    for share in shares[1:]:
        want += share
    for width in (2, 9001):
        exchange.reset()
        begin_s, own = exchange.clock.now(), shares[comm.rank, :, :width]
        with exchange.clock.running():
            total, failed = exchange.sum(own, comm.rank == n_ranks - 1)
            took_s = exchange.clock.now() - begin_s
        assert (total == want[:, :width]).all() and failed
        hops = 1 if exchange.closing.one_hop(own.nbytes, exchange.link) else 2
        if network == "real":
            assert hops == (1 if width == 2 or n_ranks < 3 else 2)
        elif n_ranks > 1:
            at = Costed(exchange.network.rate.mean_bps, exchange.network.rtt_s)
            if not exchange.network.shared:
                want_s = transfer_s(Transfer("close", (own.nbytes,) * n_ranks, 0.0), at, "port")
                assert want_s <= took_s < want_s + 0.02


@pytest.mark.mpi
def test_one_hop_where_bytes_cost_less_than_another_hop(comm):
    size = comm.Get_size()
    for network, n_bytes, one in [("1Mbps,rtt=1s", 1000, True), ("1Mbps,rtt=1ms", 10_000_000, size < 3)]:
        exchange = exchange_over(comm, network)
        assert size == 1 or exchange.closing.one_hop(n_bytes, exchange.link) == one
