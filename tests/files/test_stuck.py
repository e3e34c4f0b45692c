"""Damaged HDF5 files on which the library loops for ever: refused, or the process ends with one sentence."""

import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from astra_mpi.errors import InputError
from astra_mpi.files import hdf5, heaps
from astra_mpi.files.modelfile import read_model
from astra_mpi.files.stuck import bounded
from astra_mpi.inputs.arrays import ArrayFile
from astra_mpi.job.info import describe
from astra_mpi.ranks import witness
from helpers.processes import mpirun, outside, own_lines

#: what the header of the first text becomes: free space of no length, and a length that wraps around in 64 bits
DAMAGES = {"zeros": bytes(16), "wraps": b"\1\0\1\0\0\0\0\0" + (2**64 - 16).to_bytes(8, "little")}
LOOPS = """
import sys
from astra_mpi.files import heaps; from astra_mpi.ranks import witness
heaps.SEARCHED_BYTES, witness.READING_S = 0, 1.0
"""


@pytest.fixture(params=DAMAGES)
def damaged(request, tmp_path):
    path = tmp_path / "100% damaged.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "astra-mpi"
        file["tokens"] = np.zeros((3, 4), np.int32)
    data = bytearray(path.read_bytes())
    first = data.index(b"GCOL") + 16
    data[first : first + 16] = DAMAGES[request.param]
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("read", [read_model, describe, ArrayFile])
def test_refused_at_once(damaged, read):
    with pytest.raises(InputError, match=r"is damaged \(its texts, at byte \d+\)") as caught:
        read(damaged)
    assert str(damaged) in str(caught.value) and "\n" not in str(caught.value)


def test_texts_of_all_sizes_are_no_damage(tmp_path):
    path = tmp_path / "texts.h5"
    sizes = [0, 1, 7, 8, 9, 15, 16, 17, 4000, 4080, 4096, 5000, 100_000]
    with h5py.File(path, "w") as file:
        file["many"] = np.array(["x" * (i % 40) for i in range(70_000)], dtype=h5py.string_dtype())
        for size in sizes:
            file.attrs[f"of {size}"] = "x" * size
    assert path.read_bytes().count(b"GCOL") > 3
    assert heaps.endless(path) is None
    with hdf5.reading(path) as file:
        assert [len(file.attrs[f"of {size}"]) for size in sizes] == sizes


def test_whoever_is_stuck_ends_with_one_sentence(damaged):
    """In files that are too large to be searched."""
    code = LOOPS + "from astra_mpi.cli import main\nsys.exit(main(['info', sys.argv[1]]))"
    command = [sys.executable, "-c", code, str(damaged)]
    done = subprocess.run(command, env=outside(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    why = "keeps the HDF5 library busy for over 1 s: it is damaged; make it anew"
    assert done.stderr == f"astra-mpi: error: {damaged} {why}\n"


@pytest.mark.parametrize("damaged", ["zeros"], indirect=True)
def test_a_rank_that_is_stuck_ends_all_with_one_sentence(damaged):
    code = LOOPS + (
        "from astra_mpi.job.info import describe\n"
        f"def run(args, comm):\n    if comm.rank == 1:\n        describe({str(damaged)!r})\n"
        "    comm.Barrier()\n    return 0"
    )
    done, _ = mpirun(3, code)
    assert done.returncode != 0
    said = own_lines(done)
    assert len(said) == 1 and said[0].startswith(f"astra-mpi: error: rank 1: {damaged} keeps"), done.stderr


def test_work_that_goes_on_is_not_stuck(tmp_path, monkeypatch):
    """Much longer than the limit, in Python, in NumPy and in many short reads."""
    path = tmp_path / "sound.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(1000)
    monkeypatch.setattr(witness, "READING_S", 1.0)
    begin_s = time.process_time()
    with hdf5.reading(path) as file, bounded("and again"):
        while time.process_time() - begin_s < 2.0:
            assert int(file["x"][-1]) == 999
        while time.process_time() - begin_s < 4.0:
            np.sort(np.arange(100_000)[::-1])
