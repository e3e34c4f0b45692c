"""A rank that dies is named, once. Each case is a program of its own under mpirun."""

import socket
import subprocess
import sys
import time

import pytest

from astra_mpi.ranks import witness
from helpers.processes import mpirun, own_lines, state_of

DIES = """
import os, signal
from astra_mpi.ranks import witness
from astra_mpi.ranks.witness import WITNESS
{before}
def run(args, comm):
    if comm.rank == 0 and WITNESS._process is not None:
        print("witness", WITNESS._process.pid, flush=True)
    comm.Barrier()
    if comm.rank == {rank}:
        os.kill(os.getpid(), signal.{how})
    comm.Barrier()
    return 0
"""


def witness_has_ended(done):
    """The process that rank 0 told of is gone, or waits for its new parent to notice."""
    (pid,) = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("witness ")]
    end_s = time.monotonic() + 10
    while time.monotonic() < end_s:
        if state_of(int(pid)) in ("", "Z"):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("rank", "how"), [(2, "SIGKILL"), (0, "SIGKILL"), (1, "SIGSEGV")])
def test_the_rank_that_dies_is_named_once(rank, how):
    done, wall_s = mpirun(3, DIES.format(before="", rank=rank, how=how))
    assert done.returncode != 0
    said = own_lines(done)
    assert len(said) == 1, done.stderr
    assert f"rank {rank} (process " in said[0] and f" on {socket.gethostname()}) has died" in said[0]
    assert wall_s < 15
    assert witness_has_ended(done)


def test_an_orderly_end_says_nothing():
    done, _ = mpirun(3, DIES.format(before="", rank=7, how="SIGKILL"))
    assert done.returncode == 0 and own_lines(done) == []
    assert witness_has_ended(done)


@pytest.mark.parametrize(
    ("before", "why"),
    [
        ("witness._PROGRAM = '/none'", "not started"),
        ("if os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK')) == '1': witness._connect = "
         "lambda *_: None", "not reached by one rank"),
    ],
)  # fmt: skip
def test_without_a_witness_nobody_is_named(before, why):
    done, _ = mpirun(3, DIES.format(before=before, rank=7, how="SIGKILL"))
    assert done.returncode == 0 and own_lines(done) == [], done.stderr
    done, _ = mpirun(3, DIES.format(before=before, rank=2, how="SIGKILL"))
    assert done.returncode != 0 and own_lines(done) == [], done.stderr


class Peers:
    """A witness of two ranks that are sockets of this test."""

    def __init__(self, limit_s=60.0):
        command = [sys.executable, "-I", "-S", str(witness._PROGRAM), "2", str(limit_s), "all end"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.port, self.token = self.process.stdout.readline().split()

    def connect(self, rank, token=None):
        hello = f"{token or self.token} {rank} {100 + rank} node\n".encode()
        return witness._connect(["127.0.0.1"], int(self.port), hello)

    def said(self):
        return self.process.communicate(timeout=20)[1]


def test_a_stranger_is_no_rank_and_the_first_to_die_is_named():
    peers = Peers()
    zero = peers.connect(0)
    stranger = peers.connect(1, token="wrong")
    one = peers.connect(1)
    assert zero is not None and one is not None and stranger is None
    one.close()
    zero.close()
    why = "has died: killed by a signal or for memory, or crashed; all end"
    assert peers.said() == f"astra-mpi: error: rank 1 (process 101 on node) {why}\n"


@pytest.mark.parametrize("who", [0, 1])
def test_silent_once_the_message_has_been_given(who):
    peers = Peers()
    lines = [peers.connect(rank) for rank in (0, 1)]
    lines[who].send(b"t")
    assert lines[who].recv(1) == b""  # it is gone: whoever ends now is not named
    for line in lines:
        line.close()
    assert peers.said() == ""


def test_ends_when_rank_0_gives_up():
    peers = Peers()
    assert peers.connect(1) is not None
    peers.process.stdin.close()
    peers.process.stdin = None
    assert peers.said() == "" and peers.process.returncode == 0
