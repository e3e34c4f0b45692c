"""The command line as a user meets it: processes, exit codes, what is on stderr."""

import argparse
import json
import os
import subprocess
import sys

import pytest

from astra_mpi import __version__, cli
from astra_mpi.device import threads
from astra_mpi.errors import InputError
from astra_mpi.ranks import launch
from helpers.processes import MPIRUN, astra, mpirun, outside, own_lines, start

DECK = '[model]\npath="m.h5"\n[input]\npath="in.txt"\nkind="text"\n[task]\nname="embed"\n[output]\npath="out.h5"\n'


def test_help_imports_neither_mpi_nor_numpy():
    code = (
        "import sys\nfrom astra_mpi.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'mpi4py', 'numpy', 'numba', 'h5py'} & set(sys.modules)))"
    )
    for arguments in (["--help"], ["run", "--help"]):
        done = start(sys.executable, "-c", code, *arguments)
        assert "usage: astra-mpi" in done.stdout
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_version_and_wrong_use():
    assert astra("--version").stdout == f"astra-mpi {__version__}\n"
    wrong = astra("rnu")
    assert wrong.returncode == 2 and "rnu" in wrong.stderr


def test_input_errors_are_one_sentence_and_exit_code_2(tmp_path):
    done = astra("run", str(tmp_path / "none.toml"))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"astra-mpi: error: {tmp_path / 'none.toml'}: the deck cannot be read (No such file or directory); "
        "check the path"
    ]
    (tmp_path / "deck.toml").write_text(DECK)
    done = astra("run", str(tmp_path / "deck.toml"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and str(tmp_path / "m.h5") in done.stderr
    done = astra("run", str(tmp_path / "deck.toml"), "run.bathc=3", "--debug")
    assert "did you mean 'batch'?" in done.stderr and "Traceback" in done.stderr


def test_several_processes_asked_for_but_one_seen(tmp_path):
    done = astra("run", "deck.toml", SLURM_NTASKS="4")
    assert done.returncode == 2
    assert "4 processes were asked for, but MPI sees one" in done.stderr and "--mpi=pmi2" in done.stderr
    assert "the deck cannot be read" in astra("run", str(tmp_path / "deck.toml"), SLURM_NTASKS="1").stderr


def test_mpirun_of_one_inside_a_larger_allocation(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("PMI_SIZE", "1")
    launch.check_together(1)
    monkeypatch.delenv("PMI_SIZE")
    with pytest.raises(InputError):
        launch.check_together(1)
    launch.check_together(4)


def test_some_of_the_processes_joined(monkeypatch):
    for name in (*launch._SIZES, "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    launch.check_together(4)  # mpirun -n 4 of a launcher that says nothing
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    launch.check_together(8)
    with pytest.raises(InputError, match="8 processes were asked for, but MPI sees 4"):
        launch.check_together(4)


@pytest.mark.parametrize("rank", [0, 1])
def test_command_of_one_process_started_as_several(monkeypatch, capsys, rank):
    for name in launch._SIZES + launch._RANKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
    args = argparse.Namespace(command="info", debug=False, run=lambda args: pytest.fail("it ran"))
    assert cli._alone(args) == 2
    said = "astra-mpi: error: info is done by one process; run it without mpirun or srun\n"
    assert capsys.readouterr().err == (said if rank == 0 else "")


def test_unexpected_error_exits_3_and_names_its_kind(monkeypatch, capsys):
    for name in launch._SIZES + launch._RANKS:
        monkeypatch.delenv(name, raising=False)
    args = argparse.Namespace(command="info", debug=False, run=lambda args: {}["x"])
    assert cli._alone(args) == 3
    assert capsys.readouterr().err == "astra-mpi: error: KeyError: 'x'; --debug shows where\n"


def test_closed_pipe_is_no_error():
    code = (
        "from astra_mpi import cli\ncli._together = lambda args: print('x' * 10**6) or 0\nexit(cli.main(['run', 'd']))"
    )
    reader = subprocess.Popen([sys.executable, "-c", "pass"], stdin=subprocess.PIPE)
    writer = subprocess.Popen(
        [sys.executable, "-c", code], env=outside(), stdout=reader.stdin, stderr=subprocess.PIPE, text=True
    )
    assert reader.stdin
    reader.stdin.close()
    reader.wait()
    assert writer.communicate(timeout=20)[1] == ""
    assert writer.returncode == 141


def test_exception_on_one_rank_ends_all():
    code = "def run(args, comm):\n    if comm.rank == 1: raise ValueError('boom')\n    comm.Barrier()\n    return 0"
    done, wall_s = mpirun(2, code)
    assert done.returncode != 0
    assert own_lines(done) == ["astra-mpi: error: rank 1: ValueError: boom; --debug shows where"]
    assert "Traceback" not in done.stderr
    assert wall_s < 10


def test_traceback_with_debug():
    code = "def run(args, comm):\n    if comm.rank == 1: raise ValueError('boom')\n    comm.Barrier()\n    return 0"
    assert "line 5, in run" in mpirun(2, code, "--debug")[0].stderr


@pytest.mark.parametrize(
    ("raises", "code"), [("InputError('give less')", 2), ("AstraError('x')", 3), ("VerifyError('x')", 4)]
)
def test_the_same_error_on_all_ranks_is_said_once(raises, code):
    done, _ = mpirun(3, f"def run(args, comm):\n    raise {raises}")
    assert done.returncode == code
    assert len(own_lines(done)) == 1 and "rank" not in own_lines(done)[0]


def test_collective_error_of_one_rank():
    code = (
        "def run(args, comm):\n    with collective(comm):\n"
        "        if comm.rank == 1: raise InputError('the file differs; copy it again')\n    return 0"
    )
    done, _ = mpirun(2, code)
    assert done.returncode == 2
    assert own_lines(done) == ["astra-mpi: error: rank 1: the file differs; copy it again"]


def test_exit_code_of_a_command_is_that_of_mpirun():
    assert mpirun(2, "def run(args, comm):\n    return 0")[0].returncode == 0


def test_threads_in_force(monkeypatch):
    code = (
        "from astra_mpi.device.threads import set_threads\nimport json, numba, numpy, threadpoolctl\n"
        "n, pools = set_threads(), threadpoolctl.threadpool_info()\n"
        "blas = [pool['num_threads'] for pool in pools if pool['user_api'] == 'blas']\n"
        "from astra_mpi.kernels.cpu import _team\n"
        "print(json.dumps([n, _team.size(), numba.get_num_threads(), max(blas)]))"
    )
    for environment, n in (({}, 1), ({"SLURM_CPUS_PER_TASK": "2"}, 2), ({"SLURM_CPUS_PER_TASK": "64"}, 64)):
        limits = {"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
        assert json.loads(start(sys.executable, "-c", code, **limits, **environment).stdout) == [n, n, min(n, 2), 1]
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "two")
    with pytest.raises(InputError, match="SLURM_CPUS_PER_TASK = 'two'"):
        threads.set_threads()


def test_wrong_use_is_said_once():
    if MPIRUN is None:
        pytest.skip("no mpirun")
    done = start(MPIRUN, "-n", "3", sys.executable, "-m", "astra_mpi", "verify", "m.h5", "--tokns", "8")
    assert done.returncode != 0
    assert done.stderr.count("unrecognized arguments: --tokns 8") == 1


def test_more_threads_than_cores_are_noticed(capsys, monkeypatch):
    for name in launch._RANKS:
        monkeypatch.delenv(name, raising=False)
    cores = len(os.sched_getaffinity(0))
    code = f"from astra_mpi.device.threads import set_threads; set_threads({cores + 3})"
    assert f"{cores + 3} threads per rank on {cores} cores" in start(sys.executable, "-c", code).stderr


@pytest.mark.parametrize("options", [["convert", "folder"], ["init", "bert-tiny"]])
def test_outputs_are_looked_at_before_the_work(tmp_path, options):
    (tmp_path / "folder").mkdir()
    done = astra(options[0], options[1].replace("folder", str(tmp_path / "folder")), str(tmp_path / "none" / "m.h5"))
    assert done.returncode == 2
    assert f"the folder {tmp_path / 'none'} does not exist" in done.stderr
