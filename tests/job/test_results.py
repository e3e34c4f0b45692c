"""Parts, lock, resume and join of results, on one process."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest

from astra_mpi.errors import AstraError, InputError
from astra_mpi.job import lock
from astra_mpi.job.lock import Lock
from astra_mpi.job.recorded import finished_summary, parts_folder, recorded_choices
from astra_mpi.job.results import Results, check_room
from helpers.results import STATE, SUMMARY, open_results, values, write


def test_parts_are_joined_in_input_order(tmp_path):
    output = tmp_path / "new" / "out.h5"
    results = open_results(output)
    assert results.pending() == [0, 1, 2]
    for part in (2, 0, 1):
        write(results, part)
    np.testing.assert_array_equal(results.outputs("embedding"), values(0, 8)["embedding"])
    results.join(SUMMARY, {"run": {}})
    results.close()
    assert os.listdir(output.parent) == ["out.h5"]
    with h5py.File(output) as file:
        np.testing.assert_array_equal(file["outputs/embedding"], values(0, 8)["embedding"])
        np.testing.assert_array_equal(file["inputs/index"], np.arange(8))
        assert file["outputs/embedding"].dtype == values(0, 1)["embedding"].dtype
        assert file.attrs["format"] == "astra-mpi-results"
        assert json.loads(file.attrs["deck"]) == {"run": {}}
        assert file.attrs["model_digest"] == "m"
        assert json.loads(file.attrs["choices"]) == {"remote": "table"}
    assert finished_summary(output, STATE) == SUMMARY


def test_resume_keeps_finished_parts(tmp_path):
    output = tmp_path / "out.h5"
    results = open_results(output)
    write(results, 1)
    results.close()
    assert recorded_choices(output) == {"remote": "table"}
    again = open_results(output)
    assert again.pending() == [0, 2]
    again.close()
    anew = open_results(output, resume=False)
    assert anew.pending() == [0, 1, 2]
    anew.close()


def test_a_damaged_part_is_made_again(tmp_path):
    results = open_results(tmp_path / "out.h5")
    for part in range(3):
        write(results, part)
    results.close()
    part = results.folder / "part-00000001.h5"
    part.write_bytes(part.read_bytes()[:500])
    again = open_results(tmp_path / "out.h5")
    assert again.pending() == [1]
    again.close()


@pytest.mark.parametrize(
    "change", [{"model_digest": "other"}, {"run.batch": 4}, {"parallel.weights": "even"}, {"ranks": 2}]
)
def test_other_settings_are_refused(tmp_path, change):
    output = tmp_path / "out.h5"
    results = open_results(output)
    write(results, 0)
    results.close()
    key = next(iter(change))
    with pytest.raises(InputError, match=rf"{key} = .*run\.resume=false"):
        open_results(output, {**STATE, **change})
    again = open_results(output)  # the refusal left no lock, and the parts are there
    assert again.pending() == [1, 2]
    for part in again.pending():
        write(again, part)
    again.join(SUMMARY, {})
    with pytest.raises(InputError, match=rf"out\.h5 holds results with {key}"):
        finished_summary(output, {**STATE, **change})


def test_foreign_output_is_not_replaced(tmp_path):
    output = tmp_path / "out.h5"
    output.write_text("my thesis")
    with pytest.raises(InputError, match=r"out\.h5 exists and holds no results"):
        open_results(output, resume=False)
    assert output.read_text() == "my thesis"


def test_output_in_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\); .*choose another place"):
        open_results(tmp_path / "file" / "out.h5")


def test_second_run_is_refused_and_first_goes_on(tmp_path):
    output = tmp_path / "out.h5"
    results = open_results(output)
    write(results, 0)
    with pytest.raises(InputError, match=rf"out\.h5\.parts is in use by process {os.getpid()} on .*output\.path"):
        open_results(output, resume=False)
    write(results, 1)
    assert results.pending() == [2]
    results.close()
    open_results(output).close()


def holder(folder, silent_s=0.0, **changes):
    folder.mkdir(exist_ok=True)
    me = {
        "host": socket.gethostname(),
        "machine": lock._machine(),
        "pid": os.getpid(),
        "started": lock._started(os.getpid()),
    }
    (folder / "lock").write_text(json.dumps({**me, "token": "theirs", "heartbeat": time.time(), **changes}))
    then = time.time() - silent_s
    os.utime(folder / "lock", (then, then))


def ended_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_lock_of_an_ended_process_is_taken_over(tmp_path, capsys):
    folder = parts_folder(tmp_path / "out.h5")
    pid = ended_pid()
    holder(folder, pid=pid)
    open_results(tmp_path / "out.h5").close()
    assert f"taking over {folder} from process {pid}" in capsys.readouterr().err


def test_lock_of_a_process_number_used_again_is_taken_over(tmp_path, capsys):
    holder(parts_folder(tmp_path / "out.h5"), started=lock._started(os.getpid()) - 100)
    open_results(tmp_path / "out.h5").close()
    assert "which has ended" in capsys.readouterr().err


def test_silent_lock_of_another_machine_is_taken_over(tmp_path, capsys):
    folder = parts_folder(tmp_path / "out.h5")
    holder(folder, silent_s=lock.STALE_AFTER_S + 5, host="elsewhere", machine="another")
    open_results(tmp_path / "out.h5").close()
    assert "silent for 65 s" in capsys.readouterr().err
    assert not (folder / "lock").exists()


def test_fresh_lock_of_another_machine_is_waited_for(tmp_path, capsys, monkeypatch):
    """Its beats tell; without any it is taken over in the end."""
    monkeypatch.setattr(lock, "LOOK_EVERY_S", 0.02)
    folder = parts_folder(tmp_path / "out.h5")
    holder(folder, host="elsewhere", machine="another")
    beat = threading.Timer(0.2, holder, [folder], {"host": "elsewhere", "machine": "another", "heartbeat": 1.0})
    beat.start()
    with pytest.raises(InputError, match=r"in use by process \d+ on elsewhere"):
        open_results(tmp_path / "out.h5")
    beat.join()
    monkeypatch.setattr(lock, "STALE_AFTER_S", 0.3)
    holder(folder, host="elsewhere", machine="another")
    open_results(tmp_path / "out.h5").close()
    assert "waiting up to 0 s for a sign of life" in capsys.readouterr().err


def test_lock_without_a_word_is_taken_over_once_it_is_old(tmp_path):
    folder = parts_folder(tmp_path / "out.h5")
    holder(folder, silent_s=lock.STALE_AFTER_S + 1)
    (folder / "lock").write_text("")
    then = time.time() - lock.STALE_AFTER_S - 1
    os.utime(folder / "lock", (then, then))
    open_results(tmp_path / "out.h5").close()


def test_run_that_lost_its_lock_stops(tmp_path):
    results = open_results(tmp_path / "out.h5")
    holder(results.folder, host="elsewhere")
    with pytest.raises(AstraError, match="another run took over"):
        write(results, 0)
    results.close()
    assert (results.folder / "lock").exists()  # it is theirs


def test_lock_beats_while_a_batch_takes_long(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_EVERY_S", 0.02)
    held = Lock(tmp_path / "lock")
    first = json.loads((tmp_path / "lock").read_text())["heartbeat"]
    end = time.monotonic() + 5
    while json.loads((tmp_path / "lock").read_text())["heartbeat"] == first:
        assert time.monotonic() < end
        time.sleep(0.01)
    held.release()
    assert os.listdir(tmp_path) == []


def test_a_summary_never_takes_the_place_of_results_or_of_another_file(tmp_path):
    with pytest.raises(InputError, match=r"y\.json is where the summary goes"):
        check_room(tmp_path / "y.json")
    (tmp_path / "z.json").write_text("not mine")
    with pytest.raises(InputError, match=r"z\.json exists and is no summary"):
        check_room(tmp_path / "z.h5")
    (tmp_path / "z.json").write_text(json.dumps({"astra_mpi": "0.1.0"}))
    check_room(tmp_path / "z.h5")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "out.h5")
    with pytest.raises(InputError, match="holds no results"):
        check_room(tmp_path / "out.h5")


def test_parts_of_an_unknown_job_are_not_removed(tmp_path):
    folder = parts_folder(tmp_path / "out.h5")
    folder.mkdir()
    (folder / "part-00000000.h5").write_bytes(b"hours of work")
    with pytest.raises(InputError, match=r"no state\.json"):
        Results(tmp_path / "out.h5", {}, range(4), 2, True)
    assert (folder / "part-00000000.h5").exists()
    Results(tmp_path / "out.h5", {}, range(4), 2, False).close()
    assert not (folder / "part-00000000.h5").exists()


def test_a_lock_that_vanished_is_told_as_such(tmp_path):
    held = lock.Lock(tmp_path / "lock")
    (tmp_path / "lock").unlink()
    with pytest.raises(AstraError, match="was removed while this run was at work"):
        held.beat()
    held.release()
