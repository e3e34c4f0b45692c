"""A rank that hangs: all end, and one message names it. Each case is a program of its own under mpirun."""

import re
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from astra_mpi.ranks.watchdog import Answer, judge
from astra_mpi.ranks.watched import Watched, alone, waiting, watched
from helpers.processes import mpirun, own_lines

HANG = """
import os, re, signal, time, numpy as np
from astra_mpi.ranks.watched import alone
def run(args, comm):
    one = np.zeros(1)
    comm.Barrier()
    comm.dog.limit_s = 1.0
    if comm.rank == {rank}:
        {body}
    comm.Allreduce(one.copy(), one)
    return 0
"""

BODIES = {
    "computes": ("time.sleep(60)", r"rank 1 has been at work for \d+ s without reaching the others \(after Barrier\)"),
    "computes in C": ("re.match('(a+)+$', 'a' * 60 + 'b')", "rank 1 gives no sign of life"),
    "is stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", "rank 1 gives no sign of life"),
    "has left": ("return 0", "rank 1 gives no sign of life"),
    "is elsewhere": (
        "comm.Recv(one, 0)",
        r"all ranks wait for each other, rank 0 in Allreduce, rank 1 in Recv, rank 2",
    ),
}


@pytest.mark.parametrize("case", BODIES)
def test_all_end_and_the_rank_is_named(case):
    body, message = BODIES[case]
    done, wall_s = mpirun(3, HANG.format(rank=1, body=body))
    assert done.returncode != 0
    said = own_lines(done)
    assert len(said) == 1, done.stderr
    assert re.search(message, said[0]), said[0]
    assert "(watchdog)" in said[0]
    assert wall_s < 19  # one second of limit and the roll call; the rest is start and a busy machine


def test_work_that_one_rank_does_alone_may_take_longer():
    done, _ = mpirun(3, HANG.format(rank=0, body="with alone(comm, 'reading'): time.sleep(4)"))
    assert done.returncode == 0, done.stderr


def test_off():
    body = "comm.dog.limit_s = 0.0\n    if comm.rank == 1:\n        time.sleep(3)"
    done, _ = mpirun(2, HANG.format(rank=7, body="pass").replace("comm.dog.limit_s = 1.0", body))
    assert done.returncode == 0, done.stderr


def test_mpi_without_threads_names_no_rank_but_ends():
    code = HANG.format(rank=1, body="time.sleep(60)").replace("limit_s = 1.0", "limit_s = 0.1")
    done, _ = mpirun(2, "import mpi4py\nmpi4py.rc.thread_level = 'single'\n" + code)
    assert done.returncode != 0
    assert "a rank that rank 0 waits for in Allreduce is silent" in done.stderr


LIBRARY = """
import numpy as np, sys
sys.path.insert(0, {tests!r})
import astra_mpi
from helpers.fakes import bert_config, model_file
from astra_mpi.files.modelfile import write_model
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.ranks.broadcast import broadcast_text
from mpi4py import MPI
def run(args, _):
    comm = MPI.COMM_WORLD.Dup()
    path = broadcast_text(comm, {path!r})
    config = bert_config()
    if comm.rank == 0:
        write_model(path, model_file(config))
    comm.Barrier()
    model = astra_mpi.load(path, comm=comm, watchdog="60s")
    inputs, mask = random_batch(config, 2, 11)
    model(inputs, mask)
    if comm.rank == 1:
        {body}
    {after}
    try:
        model(inputs, mask{gather})
    except Exception as exc:
        if comm.rank == 0:
            print("raised:", exc, flush=True)
        return 0
    return 5
"""
NO_MEMORY = "def fail(*a, **k): raise MemoryError('no room')\n        "


@pytest.mark.parametrize(
    ("where", "gather"),
    [
        ("model.strategy.begin = fail", ""),
        ("model.family.head = fail", ""),
        ("model.exchange.room = fail", ", gather=True"),
    ],
)
def test_no_memory_on_one_rank_is_an_error_on_all(tmp_path, where, gather):
    body = NO_MEMORY + where
    after = "model._planned = None"  # as for a batch of another shape
    tests = str(Path(__file__).parents[1])
    done, _ = mpirun(2, LIBRARY.format(tests=tests, path=str(tmp_path / "m.h5"), body=body, after=after, gather=gather))
    assert done.returncode == 0, done.stderr
    assert "raised: rank 1: MemoryError: no room" in done.stdout


def test_a_rank_that_does_not_come_to_the_forward_pass(tmp_path):
    tests = str(Path(__file__).parents[1])
    after = "model.comm.dog.limit_s = 2.0"
    body = after + "; __import__('time').sleep(60)"
    done, _ = mpirun(3, LIBRARY.format(tests=tests, path=str(tmp_path / "m.h5"), body=body, after=after, gather=""))
    assert done.returncode != 0
    assert "rank 1 has been at work for" in done.stderr and "(watchdog)" in done.stderr


def answer(waits=True, for_s=10.0, allowed_s=10.0, what="Allreduce"):
    return Answer(waits, for_s, allowed_s, what)


def test_verdicts():
    assert "rank 2 gives no sign of life; rank 0 has waited 10 s in Bcast" in judge(
        {1: answer()}, 0, 3, 10, "Bcast", 10
    )
    assert judge({}, 1, 3, 10, "Bcast", 10).startswith("ranks 0, 2 give no sign of life")
    busy = answer(waits=False, for_s=11.0, what="after exchange 3")
    assert "rank 1 has been at work for 11 s" in judge({1: busy, 2: answer()}, 0, 3, 10, "Bcast", 10)
    reading = answer(waits=False, for_s=11.0, allowed_s=120.0)
    assert judge({1: reading, 2: answer()}, 0, 3, 10, "Bcast", 10) == ""
    assert judge({1: answer(for_s=2.0)}, 0, 2, 10, "Bcast", 10) == ""  # it may be on its way
    told = judge({1: answer(what="Recv")}, 0, 2, 10, "Bcast", 10)
    assert told == "all ranks wait for each other, rank 0 in Bcast, rank 1 in Recv, for 10 s"


@pytest.mark.mpi
def test_the_same_communicator_watched(comm):
    seen = watched(comm, 60.0)
    if comm.size == 1:
        assert seen is comm
        return
    assert isinstance(seen, Watched) and seen.Get_size() == comm.size
    assert watched(comm).dog is seen.dog and seen.dog.limit_s == 60.0
    total = np.zeros(1)
    seen.Allreduce(np.ones(1), total, op=MPI.SUM)
    assert total[0] == comm.size
    assert seen.dog.state.what == "after Allreduce" and not seen.dog.state.waits
    with alone(seen, "reading"):
        with waiting(seen, "a friend"):
            assert seen.dog.state.waits
        assert seen.dog.state.share > 1 and not seen.dog.state.waits
    assert seen.dog.state.share == 1.0
    duplicate = seen.Dup()
    duplicate.Barrier()
    duplicate.Free()
