"""Processes of the command line, with and without mpirun."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCHERS = ("PMI", "OMPI", "PRTE", "SLURM", "HYD", "MPI")


BESIDE = shutil.which("mpirun", path=str(Path(sys.executable).parent))


MPIRUN = BESIDE or shutil.which("mpirun")


def outside(**more):
    """The environment without the launcher that may have started this test."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return plain | root | {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"} | more


def start(*command, timeout=20, **environment):
    return subprocess.run(command, env=outside(**environment), capture_output=True, text=True, timeout=timeout)


def astra(*arguments, **environment):
    return start(sys.executable, "-m", "astra_mpi", *arguments, **environment)


def mpirun(size, code, *options):
    """`code` defines run(args, comm), which the command line runs on `size` ranks."""
    if MPIRUN is None:
        pytest.skip("no mpirun")
    script = "import argparse, sys\nfrom astra_mpi import cli\nfrom astra_mpi.errors import *\n"
    script += code + "\nsys.exit(cli._together(argparse.Namespace(run=run, debug='--debug' in sys.argv)))"
    begin = time.monotonic()
    done = start(MPIRUN, "-n", str(size), sys.executable, "-c", script, *options)
    return done, time.monotonic() - begin


def own_lines(done):
    said = done.stderr.replace("\0", "")  # Open MPI's launcher ends what it says itself with one
    return [line for line in said.splitlines() if line.startswith("astra-mpi:")]


def state_of(pid):
    """The letter of its state (proc(5)): "Z" has ended without being noticed by its parent; "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
