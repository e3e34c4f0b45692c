"""Descriptions of networks, and what transfers take on them: figures worked out by hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from astra_mpi.errors import InputError
from astra_mpi.network.link import make_link
from astra_mpi.network.spec import REAL, parse_network, read_trace

MBYTE = 125_000  # bytes that take one second at 1 Mbps


def trace(folder, *rows, head="time_s,mbps"):
    path = folder / "trace.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def links(spec, size, accounting="port"):
    return [make_link(parse_network(spec, accounting), rank, size) for rank in range(size)]


def gather(ports, starts_s, counts):
    """(receiver, sender) arrival times of an all-gather that the ranks start at these times."""
    departures = np.array([port.depart(start, counts) for port, start in zip(ports, starts_s, strict=True)])
    return np.array([port.arrivals(departures, counts) for port in ports])


def test_everything_that_can_be_said():
    network = parse_network("10Mbps, rtt=2ms,loss=1%,shared", "paper")
    assert (network.rate.bps.tolist(), network.rtt_s) == ([1e7], 2e-3)
    assert (network.loss, network.shared, network.accounting) == (0.01, True, "paper")
    assert parse_network("real").rate is None is REAL.rate
    assert parse_network("real,loss=5%").loss == 0.05


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0Mbps", "network '0Mbps': bandwidth '0Mbps' is not above zero"),
        ("10MBps", "seems to count bytes"),
        ("10 parsecs", "unknown unit"),
        ("10Mbps,rtt=2", "no unit"),
        ("10Mbps,loss=2", "not a percentage"),
        ("10Mbps,loss=101%", "not a percentage"),
        ("10Mbps,jitter=2ms", "'jitter=2ms' is unknown; use real, BANDWIDTH"),
        ("rtt=2ms", "no bandwidth is given"),
        ("real,rtt=2ms", "takes loss only"),
        ("trace:none.csv", "none.csv: the trace cannot be read"),
    ],
)
def test_a_wrong_description_is_answered(text, message):
    with pytest.raises(InputError, match=message):
        parse_network(text)


def test_unknown_accounting():
    with pytest.raises(InputError, match="accounting 'ports' is unknown; use one of contributed, port, paper"):
        parse_network("10Mbps", "ports")


def test_mean_bandwidth_counts_how_long_each_row_holds(tmp_path):
    rate = read_trace(str(trace(tmp_path, "0,100", "1,10", "10,10")))
    assert rate.mean_bps == pytest.approx((100e6 + 9 * 10e6 + 9 * 10e6) / 19)
    assert parse_network("10Mbps").rate.mean_bps == 10e6


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0,20"], "two rows or more, this one has 1"),
        (["1,20", "2,30"], "starts at 0 s, this one at 1 s"),
        (["0,20", "2,30", "1,30"], "times do not increase after 2 s"),
        (["0,20", "1,zwanzig"], "line 3: '1,zwanzig' is not two numbers"),
        (["0,20", "1"], "line 3: '1' is not two numbers"),
        (["0,20", "1,0"], "line 3: bandwidth 0 Mbps is not above 0"),
    ],
)
def test_a_malformed_trace_is_answered(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_trace(str(trace(tmp_path, *rows)))


def test_a_trace_needs_its_header(tmp_path):
    with pytest.raises(InputError, match="the first line of a trace is time_s,mbps"):
        read_trace(str(trace(tmp_path, "0,20", "1,30", head="seconds,rate")))


def test_bandwidth_over_time(tmp_path):
    rate = read_trace(str(trace(tmp_path, "0,1", "1,4", "1.5,2")))
    assert rate.end_s == 2.0
    assert rate.finish(0.0, 0.5 * MBYTE) == pytest.approx(0.5)
    assert rate.finish(0.5, 2.5 * MBYTE) == pytest.approx(1.5)  # half a second at 1 Mbps, half at 4
    assert rate.finish(0.5, 4.5 * MBYTE) == pytest.approx(2.5)  # and the rest at 2, beyond the end
    assert rate.finish(1.75, 0) == 1.75


def test_drawn_traces(tmp_path):
    """They can be read, keep within their bandwidths, move by one level at a time, and repeat by seed."""
    job = Path(__file__).parents[2] / "jobs" / "bench" / "make_trace.py"
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        subprocess.run(
            [sys.executable, job, tmp_path / name, "--seconds", "200", "--step", "0.5", "--seed", str(seed)],
            check=True,
        )
    a, b, c = (read_trace(str(tmp_path / name)) for name in "abc")
    assert (a.end_s, len(a.bps)) == (200.0, 400)
    assert set(a.bps) <= {1e7 * level for level in range(2, 11)}
    assert set(np.abs(np.diff(a.bps))) == {0.0, 1e7}
    assert np.array_equal(a.bps, b.bps) and not np.array_equal(a.bps, c.bps)


def test_a_trace_that_ends_early(tmp_path):
    link = make_link(parse_network(f"trace:{trace(tmp_path, '0,20', '1,30')}"), 0, 2)
    link.origin_s = 100.0
    link.check(101.9)
    with pytest.raises(InputError, match=r"trace.csv: the trace ends at 2 s, before the run does; give a longer one"):
        link.check(102.0)


def test_a_port_carries_what_all_others_send():
    arrivals = gather(links("1Mbps,rtt=200ms", 4), [0.0] * 4, [MBYTE] * 4)
    np.testing.assert_allclose(arrivals.max(axis=1), 3.1)
    np.testing.assert_allclose(np.sort(arrivals, axis=1)[:, 1:], [[1.1, 2.1, 3.1]] * 4)
    assert (np.diag(arrivals) == -np.inf).all()


def test_late_sender_and_uneven_slices():
    arrivals = gather(links("1Mbps", 3), [0.0, 0.0, 5.0], [MBYTE, 2 * MBYTE, 0])
    # rank 0 sends to 1, then 2; rank 1 to 2, then 0: rank 2 has 1's payload by 2 s and 0's, which begins at 1 s, by 3
    np.testing.assert_allclose(arrivals[0, 1:], [4.0, 5.0])
    np.testing.assert_allclose(arrivals[1, [0, 2]], [1.0, 5.0])
    np.testing.assert_allclose(arrivals[2, :2], [3.0, 2.0])


def test_a_busy_port_delays_the_next_exchange():
    ports = links("1Mbps", 2)
    gather(ports, [0.0, 0.0], [MBYTE, MBYTE])
    np.testing.assert_allclose(gather(ports, [0.5, 3.0], [MBYTE, MBYTE])[[0, 1], [1, 0]], [4.0, 2.0])


def test_a_sender_not_heard_of_does_not_arrive():
    (port, *_) = links("1Mbps", 3)
    assert port.arrivals(np.array([0.0, np.inf, 0.0]), [MBYTE] * 3).tolist() == [-np.inf, np.inf, 1.0]


def test_shared_medium_carries_all_of_it():
    arrivals = gather(links("1Mbps,shared", 3), [0.0] * 3, [MBYTE] * 3)
    assert arrivals.max() == pytest.approx(6.0)  # 3 senders, 2 receivers each
    assert np.isfinite(arrivals).sum() == len(set(arrivals[np.isfinite(arrivals)])) == 6  # one at a time


@pytest.mark.parametrize("shared", ["", ",shared"])
def test_what_each_accounting_charges(shared):
    counts = [MBYTE, 3 * MBYTE]
    last = {a: gather(links(f"1Mbps{shared}", 2, a), [0.0, 0.0], counts).max() for a in ("contributed", "paper")}
    assert last["contributed"] == pytest.approx(4.0 if shared else 3.0)
    assert last["paper"] == pytest.approx(2.0)  # one payload, their mean


def test_all_reduce_is_a_ring():
    for size in (2, 4):
        for port in links("1Mbps,rtt=100ms", size):
            steps = 2 * (size - 1)
            assert port.reduced(1.0, MBYTE) == pytest.approx(1.0 + steps / size + steps * 0.05)
            assert port.ready(0.0) == pytest.approx(1.0 + steps / size)
    assert links("1Mbps,shared", 4)[0].reduced(0.0, MBYTE) == pytest.approx(6.0)
    assert links("1Mbps", 4, "paper")[0].reduced(0.0, MBYTE) == pytest.approx(0.25)
    assert links("1Mbps", 4, "contributed")[0].reduced(0.0, MBYTE) == pytest.approx(1.0)


def test_nothing_is_modelled_alone_or_on_the_real_network():
    assert make_link(parse_network("1Mbps"), 0, 1) is None
    assert make_link(REAL, 0, 4) is None
