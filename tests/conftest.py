"""Keep all ranks in step, test by test, and never hang.

After the call phase of every test the ranks meet on a private communicator: one rank's failure is a failure on all,
and a rank that does not come within MPI_SYNC_TIMEOUT seconds ends the run through Abort, with a non-zero exit code.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

SYNC = MPI.COMM_WORLD.Dup()
#: tests read the scripts in it as modules
sys.path += sorted({str(path.parent) for path in (Path(__file__).parents[1] / "jobs").rglob("*.py")})
LIMIT_S = float(os.environ.get("MPI_SYNC_TIMEOUT", "90"))


@pytest.fixture
def comm():
    """A communicator of its own for each test, so that a failed one leaves nothing behind."""
    duplicate = MPI.COMM_WORLD.Dup()
    yield duplicate
    duplicate.Free()


def _wait(request, what):
    end = time.monotonic() + LIMIT_S
    while not request.Test():
        if time.monotonic() > end:
            _say(f"other ranks did not finish {what} within {LIMIT_S} s: MPI_Abort")
            MPI.COMM_WORLD.Abort(86)
        time.sleep(0.0005)


def _say(text):
    sys.__stderr__.write(f"\n[rank {SYNC.rank}] {text}\n")
    sys.__stderr__.flush()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if SYNC.size > 1 and report.when == "call":
        if report.failed:  # said now: this rank may never get to its summary
            _say(f"FAILED {item.nodeid}: {call.excinfo.exconly() if call.excinfo else ''}\n{report.longreprtext}")
        failed = np.zeros(SYNC.size, dtype="i4")
        mine = np.array([report.failed], dtype="i4")
        _wait(SYNC.Iallgather(mine, failed), item.nodeid)
        if failed.any() and not report.failed:
            report.outcome = "failed"
            report.longrepr = f"failed on rank(s) {failed.nonzero()[0].tolist()}, passed on rank {SYNC.rank}"
    return report


#: files that take longest on one worker of two: the others fill the time beside them
_FIRST = ("test_docs.py", "test_slurm.py", "test_resume.py", "test_differential.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: _FIRST.index(item.path.name) if item.path.name in _FIRST else len(_FIRST))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if SYNC.rank != 0:  # rank 0 reports to the terminal, the others to files
        folder = Path(os.environ.get("MPI_PYTEST_LOGDIR", "mpi-logs"))
        folder.mkdir(parents=True, exist_ok=True)
        sys.stdout = open(folder / f"rank{SYNC.rank}of{SYNC.size}.log", "w", buffering=1)  # noqa: SIM115


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    mine = np.array([int(exitstatus)], dtype="i4")
    worst = np.zeros(1, dtype="i4")
    _wait(SYNC.Iallreduce(mine, worst, op=MPI.MAX), "the session")
    session.exitstatus = int(worst[0])
