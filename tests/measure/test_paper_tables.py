"""jobs/bench/paper_tables.py: the published figures come out of the cost model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).parents[2] / "jobs" / "bench" / "paper_tables.py"


def tables(tmp_path, *options, code=0):
    command = [sys.executable, str(JOB), "--json", str(tmp_path / "t.json"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return (json.loads((tmp_path / "t.json").read_text())["tables"], done.stdout) if code == 0 else done.stderr


def within(rows, way, limit=0.10):
    return [abs(ours / theirs - 1) <= limit for ours, theirs in zip(rows[way], rows["published"], strict=True)]


@pytest.mark.parametrize("way", ["counts", "fitted"])
def test_published_bandwidths_within_10_percent(tmp_path, way):
    """ASTRA, SP and TP; `counts` has the time of one device as its only input."""
    bandwidth = tables(tmp_path)[0]["bandwidth"]
    for scheme in ("ASTRA G=1", "ASTRA G=16", "ASTRA G=32", "SP", "TP"):
        assert all(within(bandwidth["rows"][scheme], way)), scheme


def test_published_ranks_and_tokens_but_two_ranks(tmp_path):
    answer, out = tables(tmp_path)
    assert within(answer["ranks"]["rows"]["ASTRA G=1"], "fitted") == [False, True, True, True]
    assert all(within(answer["tokens"]["rows"]["ASTRA G=1"], "fitted"))
    assert "ASTRA G=1, ranks 2 (-18%)" in out


def test_a_switch_is_slower_and_the_more_so_the_longer_its_round_trip(tmp_path):
    quick, _ = tables(tmp_path, "--rtt", "0")
    slow, _ = tables(tmp_path, "--rtt", "10ms")
    for scheme, rows in quick["bandwidth"]["rows"].items():
        for paper, near, far in zip(
            rows["fitted"], rows["switch"], slow["bandwidth"]["rows"][scheme]["switch"], strict=True
        ):
            assert far < near < paper


def test_measured_runs_find_their_cells(tmp_path):
    codec = {"kind": "grouped", "groups": 1, "stages": 4, "codebook_size": 1024}
    common = {"ranks": 4, "tokens": [1024], "network": "100Mbps,rtt=1ms", "clock": "virtual"}
    runs = [
        common | {"strategy": "single", "codec": None, "latency_s": {"total": 3.0}},
        common | {"strategy": "sp", "codec": None, "latency_s": {"total": 6.0}},
        common | {"strategy": "astra", "codec": codec, "latency_s": {"total": 1.0}},
        common | {"strategy": "tp", "codec": None, "latency_s": {"total": 1.0}, "clock": "wall"},
    ]
    (tmp_path / "b.json").write_text(json.dumps({"runs": runs}))
    answer, out = tables(tmp_path, "--measured", tmp_path / "b.json", "--markdown", tmp_path / "t.md")
    rows = answer["bandwidth"]["rows"]
    assert rows["ASTRA G=1"]["virtual clock"] == [None, None, None, 3.0, None, None]
    assert rows["SP"]["virtual clock"] == [None, None, None, 0.5, None, None]
    assert not any(rows["TP"]["virtual clock"]) and not any(rows["ASTRA G=16"]["virtual clock"])
    assert "|  | virtual clock | - | - | - | 3.00 | - | - |" in out
    assert (tmp_path / "t.md").read_text().endswith(out)


def test_bad_options_are_one_sentence(tmp_path):
    assert "is no file of `astra-mpi bench --json`" in tables(tmp_path, "--measured", tmp_path / "none.json", code=2)
    assert "duration '5' has no unit" in tables(tmp_path, "--rtt", "5", code=2)
