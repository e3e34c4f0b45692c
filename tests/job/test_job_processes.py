"""What jobs/faults/long_run.py kills and measures: the ranks of an MPI job, in whatever sessions they are."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from job_processes import Memory, marked, of_job, ranks_of

from astra_mpi.files.modelfile import write_model
from astra_mpi.ranks.launch import LAUNCHER_PREFIXES
from helpers.fakes import bert_config, model_file


def until(true, limit_s=60.0):
    end_s = time.monotonic() + limit_s
    while not true() and time.monotonic() < end_s:
        time.sleep(0.1)
    assert true()


def test_ranks_are_found_measured_and_killed(tmp_path):
    write_model(tmp_path / "m.h5", model_file(bert_config()))
    job = str(tmp_path / "job")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_PREFIXES)}
    mpirun = Path(sys.executable).parent / "mpirun"
    command = [mpirun, "-n", "3", sys.executable, "-m", "astra_mpi", "bench", tmp_path / "m.h5", "--repeats", "1000000"]
    program = subprocess.Popen(command, env=marked(plain, job), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        until(lambda: set(ranks_of(job)) == {0, 1, 2})
        ranks, memory = ranks_of(job), Memory()
        memory.look(ranks)
        assert all(looks[0][1] > 5 for looks in memory.seen.values()) and set(memory.seen) == set(ranks.values())
        assert set(ranks.values()) < set(of_job(job)) and ranks_of("another") == {}
        time.sleep(2)
        os.kill(ranks[1], signal.SIGKILL)
        assert program.wait(30) != 0
        until(lambda: not of_job(job))
    finally:
        program.kill()
        program.communicate()


def test_memory_is_judged_after_the_warm_up():
    memory = Memory()
    memory.seen = {
        1: [(0.0, 10.0), (19.0, 20.0), (21.0, 30.0), (45.0, 33.0)],
        2: [(0.0, 10.0), (21.0, 30.0), (40.0, 60.0)],  # not long enough
    }
    ((spread, life_s, mib),) = memory.spreads()
    assert (round(spread, 6), life_s, mib) == (0.1, 24.0, 33.0)
