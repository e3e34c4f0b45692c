"""A small /dev/shm is named, with its cure, before ranks die of it."""

import os
import shutil
import subprocess
import sys

import pytest

from astra_mpi.ranks import launch, shared_memory
from astra_mpi.ranks.shared_memory import KIB, MIB, room_bytes, shortage
from helpers.processes import MPIRUN, outside, own_lines

MPICH = "MPICH Version:      5.0.2\nMPICH Device:       ch4:ucx ofi\n"
OFI = "MPICH Version:      4.3.2\nMPICH Device:       ch4:ofi\n"
OLD = "MPICH Version:      4.0\nMPICH Device:       ch4:ofi\n"
OPENMPI = "Open MPI v5.0.11, package: Open MPI"
CELLS = "MPIR_CVAR_CH4_SHM_POSIX_IQUEUE_NUM_CELLS"


@pytest.mark.parametrize(
    "library, n_ranks, free, settings, deadly",
    [  # what was seen of MPICH 5.0.2 and Open MPI 5.0.11 on file systems of these sizes; None: nothing to say
        (MPICH, 1, 64 * KIB, {}, True),
        (MPICH, 2, 2060 * KIB, {}, True),
        (MPICH, 2, 2072 * KIB, {}, None),
        (MPICH, 2, 12 * MIB, {}, None),
        (MPICH, 2, 16 * MIB, {}, False),
        (MPICH, 2, 18 * MIB, {}, False),
        (MPICH, 2, 32 * MIB, {}, None),
        (MPICH, 4, 3 * MIB, {}, True),
        (MPICH, 8, 48 * MIB, {}, False),
        (MPICH, 8, 64 * MIB, {}, None),
        (MPICH, 16, 64 * MIB, {}, False),
        (MPICH, 16, 64 * MIB, {"UCX_TLS": "^posix"}, None),
        (MPICH, 16, 64 * MIB, {"UCX_TLS": "self,tcp"}, None),
        (MPICH, 16, 64 * MIB, {"UCX_TLS": "self,sm"}, False),
        (MPICH, 2, 1 * MIB, {CELLS: "16"}, None),
        (MPICH, 2, 64 * KIB, {CELLS: "4"}, True),
        (OFI, 2, 16 * MIB, {}, None),
        (OFI, 2, 64 * KIB, {}, True),
        (OLD, 2, 64 * KIB, {}, False),
        (MPICH, 2, None, {}, False),
        (OPENMPI, 2, 64 * KIB, {}, False),
        (OPENMPI, 2, 17200 * KIB, {}, False),
        (OPENMPI, 2, 17500 * KIB, {}, None),
        (OPENMPI, 1, 64 * KIB, {}, None),
        (OPENMPI, 2, 64 * KIB, {"OMPI_MCA_btl": "^sm"}, None),
        (OPENMPI, 2, 64 * KIB, {"OMPI_MCA_btl_sm_backing_directory": "/tmp"}, None),
        (OPENMPI, 2, None, {}, None),
        ("Intel MPI", 2, 0, {}, None),
    ],
)
def test_what_is_too_little(library, n_ranks, free, settings, deadly):
    found = shortage(library, n_ranks, free, settings)
    assert (None if found is None else found.deadly) is deadly
    if found is not None:
        assert "/dev/shm" in found.found and "=" in found.cure


def test_the_cure_that_is_named_is_one():
    """Fewer cells, where they fit; and the size that is recommended."""
    found = shortage(MPICH, 2, 1 * MIB, {})
    name, number = found.cure.rsplit(" ", 1)[1].split("=")
    assert shortage(MPICH, 2, 1 * MIB, {name: number}) is None
    assert shortage(MPICH, 2, 1 * MIB, {name: str(int(number) + 1)}).deadly
    for library in (MPICH, OPENMPI):
        for n_ranks in (2, 8, 16, 64):
            size = shortage(library, n_ranks, 16 * KIB, {}).cure.split("size=")[1].split("m")[0]
            assert shortage(library, n_ranks, int(size) * MIB, {}) is None


def test_room(tmp_path):
    facts = os.statvfs(tmp_path)
    assert abs(room_bytes(str(tmp_path)) - facts.f_bavail * facts.f_frsize) < 1 << 30
    assert room_bytes(str(tmp_path / "none")) is None


@pytest.mark.parametrize(
    "variables, size, rank",
    [
        ({}, 1, 0),
        ({"MPI_LOCALNRANKS": "3", "MPI_LOCALRANKID": "2"}, 3, 2),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, 4, 1),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "2", "SLURM_LOCALID": "1"}, 2, 1),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "3"}, 1, 0),
    ],
)
def test_ranks_of_this_machine(monkeypatch, variables, size, rank):
    for name in list(os.environ):
        if name.startswith(("PMI", "OMPI", "SLURM", "MPI_LOCAL")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (launch.local_size(), launch.local_rank()) == (size, rank)


def on_small_memory(size, *command, **environment):
    """Run `command` where /dev/shm is a file system of `size`."""
    if os.geteuid() or shutil.which("unshare") is None or MPIRUN is None:
        pytest.skip("needs root, unshare and mpirun")
    script = f'mount -t tmpfs -o {size} none {shared_memory.FOLDER} || exit 99; exec "$@"'
    words = ["unshare", "-m", "bash", "-c", script, "bash", *command]
    done = subprocess.run(words, env=outside(**environment), capture_output=True, text=True, timeout=60)
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip("no file system may be mounted here")
    return done


def is_mpich():
    from mpi4py import MPI

    return MPI.get_vendor()[0] == "MPICH"


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_ranks_are_not_killed(n_ranks):
    astra = [sys.executable, "-m", "astra_mpi", "doctor", "--links-s", "0.1"]
    done = on_small_memory("size=64k", MPIRUN, "-n", str(n_ranks), *astra)
    if is_mpich():
        (said,) = own_lines(done)
        assert done.returncode == 2 and "error: /dev/shm of " in said and "64 KiB free" in said
        assert "--shm-size=64m" in said and not done.stdout
    else:
        assert done.returncode == 0 and len(own_lines(done)) == n_ranks - 1
        assert ("exchange by TCP" in done.stdout) is (n_ranks == 2)


def test_the_cures_without_root_work():
    """The smallest queues of MPICH; a folder of Open MPI's."""
    astra = [sys.executable, "-m", "astra_mpi", "doctor", "--links-s", "0.1"]
    cure = {CELLS: "8"} if is_mpich() else {"OMPI_MCA_btl": "^sm"}
    done = on_small_memory("size=512k", MPIRUN, "-n", "2", *astra, **cure)
    assert done.returncode == 0 and own_lines(done) == [], done.stderr
    assert "ok   shared memory of" in done.stdout


def test_commands_of_one_process_too(tmp_path):
    done = on_small_memory("size=64k", sys.executable, "-m", "astra_mpi", "init", "bert-tiny", str(tmp_path / "m.h5"))
    if is_mpich():
        assert done.returncode == 2 and "MPICH needs 1.0 MiB for one rank" in done.stderr
    else:
        assert done.returncode == 0
