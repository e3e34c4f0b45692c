"""Jobs that are killed for real: at every file operation of the results, and as processes under mpirun."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from astra_mpi.errors import AstraError
from astra_mpi.files.modelfile import write_model
from astra_mpi.job import lock
from astra_mpi.job.recorded import finished_summary, parts_folder
from astra_mpi.job.results import Results, check_room, remove_leftovers, write_json
from helpers.fakes import bert_config, model_file
from helpers.processes import MPIRUN, outside

STATE = {"task.name": "embed", "model_digest": "m", "codec_digest": "c", "run.batch": 3}
SUMMARY = {"choices": {}, "versions": {}}
N_ITEMS, BATCH = 8, 3
EVENTS = ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir")


def values(results, part):
    return {"embedding": np.arange(*results.span(part), dtype=np.float32)[:, None] * [1, 10]}


def job(output, computed):
    """What a run does on rank 0; `computed` is told of each batch."""
    if finished_summary(output, STATE) is not None:
        remove_leftovers(output)
    else:
        results = Results(output, STATE, range(N_ITEMS), BATCH, True)
        for part in results.pending():
            computed(part)
            results.write(part, values(results, part), {"choices": {}})
        results.join(SUMMARY, {})
        results.close()
    write_json(output.with_suffix(".json"), SUMMARY)


def killed_at(output, count):
    """Run the job in a fork that kills itself at file operation number `count` -> whether it came so far."""
    pid = os.fork()
    if pid == 0:
        seen = [0]

        def hook(event, args):
            if event in EVENTS and str(output.parent) in str(args[0]):
                seen[0] += 1
                if seen[0] == count:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        job(output, lambda part: None)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_killed_at_every_file_operation(tmp_path, capfd, monkeypatch):
    """Whole parts stay as they are, the next run ends with the same bits, and nothing is left lying about."""
    monkeypatch.setattr(lock, "SETTLE_S", 0.01)
    job(tmp_path / "whole.h5", lambda part: None)
    wanted = arrays(tmp_path / "whole.h5")
    count, was_killed = 0, True
    while was_killed:
        count += 1
        folder = tmp_path / str(count)
        folder.mkdir()
        output = folder / "out.h5"
        was_killed = killed_at(output, count)
        parts = {path.name: path.stat().st_ino for path in parts_folder(output).glob("part-*.h5")}
        done = output.exists()
        computed = []
        job(output, computed.append)
        assert not computed or not done, f"operation {count}: a complete job was computed again"
        again = {f"part-{part:08d}.h5" for part in computed}
        assert not again & set(parts), f"operation {count}: a finished batch was computed twice"
        assert sorted(os.listdir(folder)) == ["out.h5", "out.json"], f"operation {count}"
        got = arrays(output)
        assert got.keys() == wanted.keys()
        assert all(got[name].tobytes() == wanted[name].tobytes() for name in wanted)
    assert count > 30  # the job has at least so many operations
    assert "taking over" in capfd.readouterr().err


def arrays(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def test_room_is_looked_for_before_the_work(tmp_path):
    check_room(tmp_path / "new" / "out.h5")
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(AstraError, match=r"file cannot be written \(File exists\); .*choose another place"):
        check_room(tmp_path / "file" / "out.h5")


# --- processes -----------------------------------------------------------------------------------------------------

DECK = """
[model]
path = "model.h5"
[input]
path = "input.npz"
kind = "tokens"
mask = "lengths"
[task]
name = "embed"
[parallel]
strategy = "astra"
[run]
batch = 2
[output]
path = "out.h5"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if MPIRUN is None:
        pytest.skip("no mpirun")
    folder = tmp_path_factory.mktemp("job")
    write_model(folder / "model.h5", model_file(bert_config()))
    draw = np.random.default_rng(0)
    ids, lengths = draw.integers(0, 50, (160, 30), dtype=np.int32), draw.integers(1, 31, 160)
    np.savez(folder / "input.npz", tokens=ids, lengths=lengths)
    (folder / "deck.toml").write_text(DECK)
    assert start(folder, "whole.h5").wait(timeout=90) == 0
    return folder


def start(folder, output, *more, ranks=3):
    launcher = [MPIRUN, "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, "-m", "astra_mpi", "run", "deck.toml", f"output.path={output}", *more]
    log = (folder / f"{output}.log").open("ab")
    return subprocess.Popen(command, cwd=folder, env=outside(), stdout=log, stderr=log, start_new_session=True)


def parts(folder, output):
    return sorted(path.name for path in (folder / f"{output}.parts").glob("part-*.h5"))


def wait_for_parts(folder, output, program, n):
    end = time.monotonic() + 60
    while len(parts(folder, output)) < n:
        assert program.poll() is None and time.monotonic() < end, (folder / f"{output}.log").read_text()[-500:]
        time.sleep(0.01)


def lock_holder(folder, output):
    return json.loads((folder / f"{output}.parts" / "lock").read_text())["pid"]


def same_as_whole(folder, output):
    got, wanted = arrays(folder / output), arrays(folder / "whole.h5")
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert got[name].tobytes() == wanted[name].tobytes(), name


def said_in(log):
    """All messages but that another grid would be faster."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("astra-mpi:")]
    return [line for line in lines if "is predicted to finish" not in line]


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGUSR1"])
def test_a_job_goes_on(folder, how):
    """SIGKILL of rank 0; the others by the launcher, which passes them on: they end between two batches."""
    output = f"{how}.h5"
    program = start(folder, output)
    wait_for_parts(folder, output, program, 3)
    target = lock_holder(folder, output) if how == "SIGKILL" else program.pid
    os.kill(target, getattr(signal, how))
    code = program.wait(timeout=60)
    assert code != 0
    said = said_in(folder / f"{output}.log")
    assert len(said) == 1, said
    if how == "SIGKILL":
        assert f"rank 0 (process {target} on " in said[0] and "the same command goes on from there" in said[0]
    else:
        assert f"stopped by {how} after batch" in said[0]
    if how == "SIGUSR1":
        assert code == 138
    kept = {name: os.stat(folder / f"{output}.parts" / name).st_ino for name in parts(folder, output)}
    assert 3 <= len(kept) < 80
    again = start(folder, output)
    while again.poll() is None:
        for name, inode in kept.items():
            try:
                assert os.stat(folder / f"{output}.parts" / name).st_ino == inode
            except FileNotFoundError:
                break  # joined
        time.sleep(0.02)
    assert again.returncode == 0
    same_as_whole(folder, output)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_exit_codes_after_a_signal(folder, number, code):
    output = f"code{code}.h5"
    program = start(folder, output, ranks=1)
    wait_for_parts(folder, output, program, 1)
    program.send_signal(number)
    assert program.wait(timeout=60) == code
    assert f"stopped by {number.name} after batch" in (folder / f"{output}.log").read_text()


@pytest.mark.parametrize(
    ("number", "message", "grid"),
    [
        (signal.SIGKILL, r"rank 2 \(process {pid} on .*\) has died", "3x1x1"),
        (signal.SIGSTOP, "rank 2 gives no sign of life", "1x1x3"),
        (signal.SIGSTOP, "rank 2 gives no sign of life", "3x1x1"),
    ],
)
def test_a_rank_other_than_0_is_named(folder, number, message, grid):
    """Also where it computes batches of its own, and nobody waits for it but in the end."""
    output = f"{number.name}-{grid}.h5"
    program = start(folder, output, f"parallel.grid={grid}", "run.watchdog=2s", "--log-dir", f"{output}.logs")
    wait_for_parts(folder, output, program, 1)
    begun = (folder / f"{output}.logs" / "rank-0002.log").read_text()
    pid = int(re.search(r"run started, .* pid (\d+)", begun)[1])
    os.kill(pid, number)
    assert program.wait(timeout=40) != 0
    said = said_in(folder / f"{output}.log")
    assert len(said) == 1 and re.search(message.format(pid=pid), said[0]), said


def test_two_runs_on_one_output(folder):
    first = start(folder, "twice.h5", ranks=2)
    wait_for_parts(folder, "twice.h5", first, 1)
    os.kill(lock_holder(folder, "twice.h5"), signal.SIGSTOP)
    second = subprocess.run(
        [sys.executable, "-m", "astra_mpi", "run", "deck.toml", "output.path=twice.h5", "run.resume=false"],
        cwd=folder, env=outside(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    os.kill(lock_holder(folder, "twice.h5"), signal.SIGCONT)
    assert second.returncode == 2
    assert "twice.h5.parts is in use by process" in second.stderr
    assert first.wait(timeout=90) == 0


def test_model_files_that_differ_between_ranks(folder):
    """MPMD: each rank has another path, as machines with copies of their own have."""
    write_model(folder / "other.h5", model_file(bert_config(), seed=1))
    one = [sys.executable, "-m", "astra_mpi", "verify", "--tokens", "8", "--strategies", "single"]
    command = [MPIRUN, "-n", "2", *one, "model.h5", ":", "-n", "1", *one, "other.h5"]
    done = subprocess.run(command, cwd=folder, env=outside(), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("astra-mpi:")]
    assert len(said) == 1 and "differs between ranks" in said[0] and "rank 2 has another" in said[0]


def test_a_rank_that_dies_ends_all(folder):
    program = start(folder, "dies.h5")
    wait_for_parts(folder, "dies.h5", program, 1)
    begin = time.monotonic()
    os.kill(lock_holder(folder, "dies.h5"), signal.SIGKILL)
    assert program.wait(timeout=30) != 0
    assert time.monotonic() - begin < 30
    assert not [pid for pid in Path("/proc").iterdir() if pid.name.isdecimal() and _session(pid) == program.pid]


def _session(process):
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[3])
