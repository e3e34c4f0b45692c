"""Bandwidths and durations as people write them."""

import pytest

from astra_mpi.errors import InputError
from astra_mpi.network.units import bandwidth_bps, duration_s


@pytest.mark.parametrize(
    "text, bps",
    [("10Mbps", 1e7), ("10 mbps", 1e7), ("500kbps", 5e5), ("1Gbps", 1e9), ("2.5Gbit/s", 2.5e9), (".5Mbit", 5e5),
     ("1e3 kbps", 1e6), ("7bps", 7.0)],
)  # fmt: skip
def test_bandwidth(text, bps):
    assert bandwidth_bps(text) == pytest.approx(bps)


@pytest.mark.parametrize("text, s", [("2ms", 2e-3), ("300us", 3e-4), ("1.5 s", 1.5), ("0", 0.0), ("0ms", 0.0)])
def test_duration(text, s):
    assert duration_s(text) == pytest.approx(s)


@pytest.mark.parametrize(
    "parse, text, said",
    [
        (bandwidth_bps, "0Mbps", "not above zero"),
        (bandwidth_bps, "-10Mbps", "not above zero"),
        (bandwidth_bps, "10", "no unit"),
        (bandwidth_bps, "10furlongs", "unknown unit 'furlongs'"),
        (bandwidth_bps, "10MB/s", "bytes"),
        (bandwidth_bps, "1e999bps", "not a number"),
        (bandwidth_bps, "fast", "not a number"),
        (bandwidth_bps, "", "not a number"),
        (duration_s, "-2ms", "negative"),
        (duration_s, "2", "no unit"),
        (duration_s, "2parsecs", "unknown unit 'parsecs'"),
        (duration_s, "soon", "not a number"),
    ],
)
def test_bad_text_is_one_sentence_with_the_cure(parse, text, said):
    with pytest.raises(InputError, match=said) as caught:
        parse(text)
    assert f"'{text}'" in str(caught.value) and "such as" in str(caught.value)
