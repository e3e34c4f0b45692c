"""What a job says while it runs: one line per event, and its state to a second shell."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from astra_mpi.cli import main
from astra_mpi.errors import InputError
from astra_mpi.job import log
from astra_mpi.job.state import describe_job
from helpers.job import write_job
from helpers.processes import MPIRUN, outside
from helpers.results import open_results, values

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) rank (\d+) batch (\d+|-): (.+)")
STATE = {"task.name": "embed", "run.batch": 3, "input_items": 8, "ranks": 2, "parallel.strategy": "astra"}


@pytest.fixture(autouse=True)
def no_handlers_left():
    logger = logging.getLogger("astra_mpi")
    before = list(logger.handlers)
    yield
    for handler in [handler for handler in logger.handlers if handler not in before]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def parsed(lines):
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), lines
    return [match.groups() for match in found]


@pytest.mark.parametrize(("rank", "shown"), [(0, ["INFO", "ERROR"]), (2, ["ERROR"])])
def test_stderr_has_rank_0_and_the_errors_of_others(rank, shown, capsys):
    log.configure(rank, "info", None)
    log.event("not asked for", level=logging.DEBUG)
    log.event("finished", batch=3, items=8, total_s=0.123456789, note=None)
    log.event("failed", level=logging.ERROR)
    lines = parsed(capsys.readouterr().err.splitlines())
    assert [line[0] for line in lines] == shown and {line[1] for line in lines} == {str(rank)}
    if rank == 0:
        assert lines[0][2:] == ("3", "finished, items 8, total_s 0.123457")


def test_a_file_per_rank_is_appended_to(tmp_path):
    for _ in range(2):
        log.configure(11, None, str(tmp_path / "logs"))
        log.event("line\nbreaks stay out", value="a\nb")
        no_handlers = logging.getLogger("astra_mpi")
        for handler in no_handlers.handlers[1:]:
            no_handlers.removeHandler(handler)
            handler.close()
    lines = (tmp_path / "logs" / "rank-0011.log").read_text().splitlines()
    assert len([line for line in lines if "value a b" in line]) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .*choose another place"):
        log.configure(0, None, str(tmp_path / "file" / "logs"))


def test_silent_by_default(capsys):
    log.configure(0, None, None)
    log.event("nobody asked", level=logging.ERROR)
    assert capsys.readouterr().err == ""


def start(folder, *arguments, size=2):
    if MPIRUN is None:
        pytest.skip("no mpirun")
    command = [MPIRUN, "-n", str(size), sys.executable, "-m", "astra_mpi", "run", folder / "deck.toml", *arguments]
    return subprocess.Popen(command, env=outside(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_events_of_a_run(tmp_path):
    """Both ranks' files: start, model, every batch once, end."""
    write_job(tmp_path)
    job = start(tmp_path, "--log-dir", tmp_path / "logs", "--log-level", "debug", "parallel.strategy=sp")
    out, err = job.communicate(timeout=100)
    assert job.returncode == 0, err
    for rank in (0, 1):
        lines = parsed((tmp_path / "logs" / f"rank-{rank:04d}.log").read_text().splitlines())
        assert {line[1] for line in lines} == {str(rank)}
        assert [int(line[2]) for line in lines if line[3].startswith("batch finished")] == [1, 2, 3, 4, 5, 6]
        said = "\n".join(line[3] for line in lines)
        for words in ("run started", "model loaded", "batch begins", "command ended, exit_code 0"):
            assert words in said
        assert ("input opened, items 11" in said) == (rank == 0)
    assert json.loads(out)["ranks"] == 2


def test_error_is_an_event(tmp_path):
    write_job(tmp_path)
    (tmp_path / "in.txt").write_bytes(b"\xff")
    code = main(["run", str(tmp_path / "deck.toml"), "--log-dir", str(tmp_path)])
    assert code == 2
    lines = parsed((tmp_path / "rank-0000.log").read_text().splitlines())
    assert [line[0] for line in lines if "is not UTF-8 at byte 0" in line[3]] == ["ERROR"]


def report(compute, wait, ranks):
    latency = {"total": compute + wait, "compute": compute, "exchange_wait": wait, "compute_by_rank": ranks}
    return {"strategy": "astra", "tokens": [5, 5], "latency_s": latency}


def write_parts(results, parts, first_s=1e9, every_s=2.0):
    for i, part in enumerate(parts):
        results.write(part, values(*results.span(part)), report(3.0, 1.0, [2.0, 3.0]))
        os.utime(results.folder / f"part-{part:08d}.h5", (first_s + i * every_s,) * 2)


def test_state_of_a_job(tmp_path):
    results = open_results(tmp_path / "out.h5", STATE)
    write_parts(results, [0, 1])
    job = describe_job(results.folder)
    assert job["state"] == "running" and job["holder"]["pid"] == os.getpid() and job["holder"]["alive"] is True
    assert job["batches"] == {"done": 2, "all": 3} and job["items"] == {"done": 6, "all": 8, "share": 0.75}
    assert job["items_per_s"] == 1.5 and job["left_s"] == pytest.approx(2 / 1.5)
    assert job["wait_share"] == 0.25 and job["forward_s"] == 8.0 and job["tokens"] == 20
    assert job["slowest_rank"] == {"rank": 1, "compute_s": 6.0, "over_mean": pytest.approx(1.2)}
    assert job["last_batch"] == "2001-09-09T01:46:42+00:00"
    write_parts(results, [2])
    assert describe_job(results.folder)["state"] == "joining"
    results.close()
    assert describe_job(results.folder)["state"] == "stopped"


def test_a_pause_does_not_count_as_work(tmp_path):
    results = open_results(tmp_path / "out.h5", {**STATE, "run.batch": 1}, batch=1)
    write_parts(results, [0, 1, 2])
    write_parts(results, [3, 4, 5], first_s=2e9)
    assert describe_job(results.folder)["items_per_s"] == 0.5
    results.close()


def test_job_without_finished_batches_and_what_is_no_job(tmp_path, capsys):
    results = open_results(tmp_path / "out.h5", STATE)
    job = describe_job(results.folder)
    assert job["items"]["done"] == 0 and job["items_per_s"] is job["wait_share"] is job["slowest_rank"] is None
    results.close()
    (results.folder / "state.json").write_text("{")
    assert main(["info", str(results.folder)]) == 2
    (results.folder / "state.json").unlink()
    assert main(["info", str(results.folder)]) == 2
    assert "no job has begun here, or it has finished" in capsys.readouterr().err


def info(path):
    command = [sys.executable, "-m", "astra_mpi", "info", path, "--json", "-"]
    return json.loads(subprocess.run(command, env=outside(), capture_output=True, check=True, timeout=60).stdout)


def test_info_from_another_shell(tmp_path, capsys):
    """A job at work, then killed, then finished."""
    write_job(tmp_path)
    parts = tmp_path / "out.h5.parts"
    job = start(tmp_path, "parallel.strategy=sp", "parallel.network=100Mbps,rtt=800ms")
    end_s = time.monotonic() + 60
    while len(list(parts.glob("part-*.h5"))) < 2:
        assert job.poll() is None and time.monotonic() < end_s
        time.sleep(0.05)
    seen = info(parts)
    assert seen["state"] == "running" and seen["ranks"] == 2 and 4 <= seen["items"]["done"] < 11
    assert seen["wait_share"] > 0.5 and seen["slowest_rank"]["rank"] in (0, 1)
    os.kill(seen["holder"]["pid"], signal.SIGKILL)
    job.communicate(timeout=60)
    assert job.returncode != 0
    assert info(tmp_path / "out.h5")["state"] == "dead"  # by the name of the results too
    assert main(["info", str(parts)]) == 0
    table = capsys.readouterr().out
    for name in ("state", "items.done", "wait_share", "slowest_rank.rank"):
        assert re.search(rf"^{re.escape(name)} +\S", table, re.M), table
    assert start(tmp_path, "parallel.strategy=sp", "parallel.network=100Mbps,rtt=800ms").wait(timeout=90) == 0
    assert not parts.exists() and "summary" in info(tmp_path / "out.h5")["attributes"]
