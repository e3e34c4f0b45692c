"""Sweeps: which points a deck asks for, no point twice, what a killed or failing one leaves, and mistakes in decks."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import write_model
from astra_mpi.job.lock import Lock
from astra_mpi.measure.sweep.deck import load_sweep
from astra_mpi.measure.sweep.points import Point, Store, points
from astra_mpi.measure.sweep.progress import SweepProgress, in_words
from astra_mpi.measure.sweep.run import find_launcher, run_sweep
from helpers.fakes import model_file, vit_config
from helpers.processes import outside
from helpers.reports import one

DECK = """
[model]
path = "m.h5"
[sweep]
strategies = ["single", "sp", "astra"]
networks = ["10Mbps,rtt=1ms"]
ranks = [1]
clock = "virtual"
repeats = 1
warmup = 0
[launch]
launcher = "./launch {ranks}"
[output]
path = "out"
"""
# stands for mpirun: notes what it is to start, and starts it as one process
ALONE = """#!/bin/sh
echo "$@" >> started
shift
exec "$@"
"""
# stands for mpirun and bench: figures at once, of the strategy asked for, at the path that ends the command
LAUNCHER = """#!/bin/sh
echo "$@" >> started
for path; do :; done
names=$(echo "$@" | sed 's/.*--strategies \\([^ ]*\\) .*/\\1/')
sed "s/STRATEGY/${names##*,}/" figures.json > "$path"
"""
HUNG = """#!/bin/sh
echo "$@" >> started
sleep 60
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_model(tmp_path / "m.h5", model_file(vit_config()))
    about = {"host": {}, "versions": {}}
    (tmp_path / "figures.json").write_text(json.dumps({"runs": [one("single"), one("STRATEGY")], **about}))
    launcher(tmp_path, LAUNCHER)
    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) - set(outside()):  # what may have started this test
        monkeypatch.delenv(name)
    return tmp_path


def launcher(folder, text):
    (folder / "launch").write_text(text)
    (folder / "launch").chmod(stat.S_IRWXU)


def deck(folder, *changes, text=DECK):
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "deck.toml").write_text(text)
    return load_sweep(folder / "deck.toml")


def started(folder):
    path = folder / "started"
    return path.read_text().splitlines() if path.exists() else []


def measured(result):
    return [run["strategy"] for run in result["runs"]]


def test_a_resumed_sweep_does_no_point_twice(folder):
    first = run_sweep(deck(folder))
    assert measured(first) == ["single", "sp", "astra"]
    assert len(started(folder)) == 3
    assert all(run["speedup"] > 0 and run["accounting"] == "port" for run in first["runs"])
    again = run_sweep(deck(folder, ('"single", "sp"', '"sp", "sp:int8"')))
    assert measured(again) == ["sp", "sp:int8", "astra"]
    assert len(started(folder)) == 4  # one new point
    assert again["runs"][0] == first["runs"][1]
    assert sorted(p.name for p in (folder / "out.points").iterdir() if p.suffix != ".json") == ["models"]


def test_other_settings_or_codebooks_are_other_points(folder):
    run_sweep(deck(folder))
    run_sweep(deck(folder, ("repeats = 1", "repeats = 2")))
    assert len(started(folder)) == 6
    write_model(folder / "m.h5", model_file(vit_config(), seed=1))
    run_sweep(deck(folder))
    assert len(started(folder)) == 9


def test_codebooks_matter_to_the_strategies_that_use_them(folder):
    from dataclasses import replace

    run_sweep(deck(folder))
    one, other = model_file(vit_config()), model_file(vit_config(), seed=1)
    write_model(folder / "m.h5", replace(one, codec=other.codec))
    run_sweep(deck(folder))
    assert [line.split("--strategies ")[1].split()[0] for line in started(folder)[3:]] == ["single,astra"]


def test_a_failing_point_is_recorded_and_the_others_go_on(folder, capsys):
    launcher(folder, ALONE)
    wrong = deck(folder, ('"sp", ', ""), ("ranks = [1]", "ranks = [1]\nspeed = 0.0"))
    result = run_sweep(wrong)
    assert measured(result) == [] and len(result["failures"]) == 2
    assert "speed 0 does not fit" in result["failures"][0]["failure"]
    assert "failed: " in capsys.readouterr().err
    assert len(started(folder)) == 2
    run_sweep(wrong)
    assert len(started(folder)) == 2  # wrong use: it would fail again
    run_sweep(wrong, retry=True)
    assert len(started(folder)) == 4


def test_a_point_that_failed_by_accident_is_tried_again(folder):
    launcher(folder, "#!/bin/sh\necho 'node 3 is down' >&2\nexit 1\n")
    result = run_sweep(deck(folder))
    assert {one["failure"] for one in result["failures"]} == {"node 3 is down (exit code 1)"}
    launcher(folder, LAUNCHER)
    assert measured(run_sweep(deck(folder))) == ["single", "sp", "astra"]


def test_a_point_that_takes_too_long(folder):
    launcher(folder, HUNG)
    result = run_sweep(deck(folder, ("[output]", 'limit = "200ms"\n[output]'), ('"single", "sp", ', "")))
    assert result["failures"][0]["failure"] == "took longer than 0.2 s and was ended; raise launch.limit"


def test_a_damaged_point_is_measured_again(folder):
    run_sweep(deck(folder))
    next((folder / "out.points").glob("*.json")).write_text('{"runs": [')
    assert measured(run_sweep(deck(folder))) == ["single", "sp", "astra"]
    assert len(started(folder)) == 4


def sweep_process(folder):
    command = [sys.executable, "-m", "astra_mpi", "sweep", str(folder / "deck.toml")]
    return subprocess.Popen(command, cwd=folder, env=outside(), stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_sweep_goes_on(folder, number, code):
    """The launcher hangs from the second point on, where the sweep is killed."""
    launcher(folder, LAUNCHER.replace("for path", "[ $(wc -l < started) -lt 2 ] || exec sleep 60\nfor path"))
    deck(folder)
    sweep = sweep_process(folder)
    end_s = time.monotonic() + 100
    while len(started(folder)) < 2 and time.monotonic() < end_s:
        time.sleep(0.05)
    sweep.send_signal(number)
    _, err = sweep.communicate(timeout=30)
    assert sweep.returncode == code, err
    if number != signal.SIGKILL:
        assert "interrupted; 1 points are kept" in err
    assert len(list((folder / "out.points").glob("*.json"))) == 1
    launcher(folder, LAUNCHER)
    assert measured(run_sweep(load_sweep(folder / "deck.toml"))) == ["single", "sp", "astra"]
    assert len(started(folder)) == 4  # 1 kept, 1 killed, 2 more


def test_two_sweeps_at_once_are_refused(folder):
    (folder / "out.points").mkdir()
    lock = Lock(folder / "out.points" / "lock")
    try:
        with pytest.raises(InputError, match=r"out\.points is in use by process"):
            run_sweep(deck(folder))
    finally:
        lock.release()
    assert not started(folder)


@pytest.mark.skipif(shutil.which("mpirun", path=str(Path(sys.executable).parent)) is None, reason="no mpirun")
def test_command_with_a_preset_and_real_ranks(folder):
    """Models are made once, and a strategy that cannot use these ranks is told in the JSON and on the page."""
    text = DECK.replace('path = "m.h5"', 'preset = "bert-tiny"\ntokens = [8]').replace("./launch", "mpirun -n")
    text = text.replace("ranks = [1]", "ranks = [3]").replace('"single", "sp"', '"bp"')
    codecs = '[codecs.small]\nkind = "grouped"\ncodebook_size = 4\n'
    deck(folder, text=text + codecs)
    for _ in range(2):
        done = sweep_process(folder)
        _, err = done.communicate(timeout=110)
        assert done.returncode == 0, err
        assert "strategy bp: width 128 cannot be cut into 3 equal parts" in err
    assert "making" not in err and "2 points are there already" in err
    result = json.loads((folder / "out.json").read_text())
    (run,) = result["runs"]
    assert (run["strategy"], run["ranks"], run["tokens"], run["codec_name"]) == ("astra", 3, [8], "small")
    assert run["codec"]["codebook_size"] == 4 and run["model_name"] == "bert-tiny"
    assert "cannot be cut into 3 equal parts" in (folder / "out.html").read_text()


def test_all_points_failed_is_exit_code_3(folder):
    launcher(folder, "#!/bin/sh\nexit 7\n")
    deck(folder)
    done = sweep_process(folder)
    _, err = done.communicate(timeout=60)
    assert done.returncode == 3 and "ended with exit code 7" in err
    assert "ended with exit code 7" in (folder / "out.html").read_text()


def test_lines_instead_of_the_grid(folder):
    networks = ('"10Mbps,rtt=1ms"', '"10Mbps", "20Mbps", "50Mbps"')
    more = (networks, ("ranks = [1]", "ranks = [1, 2, 4]"), ('["single", "sp", "astra"]', '["sp", "sp:x"]'))
    assert len(points(deck(folder, *more))) == 9
    lines = points(deck(folder, *more, ("[launch]", '[through]\nnetwork = "20Mbps"\nranks = 2\n[launch]')))
    assert [(point.ranks, point.network) for point in lines] == [
        (1, "20Mbps"), (2, "10Mbps"), (2, "20Mbps"), (2, "50Mbps"), (4, "20Mbps"),
    ]  # fmt: skip
    assert {point.strategy for point in lines} == {"sp"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("repeats", "repeat"), ["'repeat'", "'repeats'"]),
        (("[launch]", "[lanch]"), ["'lanch'", "'launch'"]),
        (("ranks = [1]", "ranks = [0]"), ["sweep.ranks", "a list of positive integers"]),
        (('path = "m.h5"', ""), ["preset or path"]),
        (('path = "m.h5"', 'path = "m.h5"\npreset = "vit-tiny"'), ["preset or path"]),
        (("[output]", '[codecs.a]\nkindd = "grouped"\n[output]'), ["[codecs.a]", "'kindd'", "'kind'"]),
        (("[output]", "[codecs.a]\ngroups = 2\n[output]"), ["[codecs.a]", "groups", "grouped"]),
        (("[output]", "[codecs.a]\nstages = 2\n[output]"), ["[codecs.a]", "model.path takes codebooks"]),
        (("[output]", "[codecs.a]\ncodebook_size = 70000\n[output]"), ["[codecs.a]", "codebook size 70000"]),
        (("[output]", "[through]\nranks = 2\n[output]"), ["through.ranks = 2"]),
        (("{ranks}", "3"), ["launch.launcher", "{ranks}"]),
        (("{ranks}", "{ranks} {"), ["launch.launcher", "{ranks}"]),
        (("10Mbps,rtt=1ms", "10"), ["network '10'", "no unit"]),
        (("[output]", 'limit = "5"\n[output]'), ["duration '5'"]),
    ],
)
def test_mistakes_in_decks(folder, change, words):
    with pytest.raises(InputError, match=r"deck\.toml") as caught:
        deck(folder, change)
    for word in words:
        assert word in str(caught.value)


def test_the_virtual_clock_needs_a_network_for_several_ranks(folder):
    assert points(deck(folder, ("10Mbps,rtt=1ms", "real")))
    with pytest.raises(InputError, match="the virtual clock cannot time the network 'real'"):
        deck(folder, ("10Mbps,rtt=1ms", "real"), ("[1]", "[1, 2]"))


def test_unknown_strategy_and_launcher(folder):
    with pytest.raises(InputError, match="strategy 'spp' is unknown"):
        run_sweep(deck(folder, ('"sp"', '"spp"')))
    with pytest.raises(InputError, match="'no-such-launcher' is not found"):
        run_sweep(deck(folder, ("./launch", "no-such-launcher")))
    assert find_launcher("sh -c {ranks}")[1:] == ["-c", "{ranks}"]


def test_time_left_follows_the_cost_of_points(capsys, monkeypatch):
    now = iter([100.0, 110.0, 140.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    progress = SweepProgress([1.0, 3.0, 8.0], n_points=5)
    progress.done("a")
    progress.done("b")
    progress.close()
    assert capsys.readouterr().err.splitlines() == ["3/5 points, 2 min left: a", "4/5 points, 80 s left: b"]
    assert [in_words(s) for s in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]


def test_store_keeps_records_whole(tmp_path):
    store = Store(tmp_path)
    store.put("k", {"runs": [1]})
    (tmp_path / "x.json.1.tmp").write_text("{")
    store.clean()
    assert store.get("k") == {"runs": [1]} and store.get("x") is None
    assert [path.name for path in tmp_path.iterdir()] == ["k.json"]
    assert str(Point("astra", "10Mbps", 4, 64, "G=1")) == "astra G=1, 10Mbps, 4 ranks, 64 tokens"
