"""weights = "auto": measured speeds, and the cut that they give."""

import time

import numpy as np
import pytest

import astra_mpi
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import write_model
from astra_mpi.planner.balance import rank_speeds
from helpers.fakes import model_file, vit_config


class Slow:
    """A block that needs `factor` times as long."""

    def __init__(self, block, factor):
        self.block, self.factor = block, factor

    def __getattr__(self, name):
        return getattr(self.block, name)

    def output(self, x, attended):
        start_s = time.perf_counter()
        self.block.output(x.copy(), attended)
        time.sleep(0.02 * self.factor - (time.perf_counter() - start_s))


@pytest.mark.mpi
def test_a_slow_rank_gets_less(comm, monkeypatch):
    model = Model(model_file(vit_config()), comm, get_backend("numpy", comm))
    factor = 1 + comm.rank % 2
    model.blocks[0] = Slow(model.blocks[0], factor)
    speeds = rank_speeds(model)
    expected = [1 / (1 + rank % 2) for rank in range(comm.size)]
    assert max(speeds) == 1
    assert np.allclose(speeds, expected, rtol=0.3)


@pytest.mark.mpi
def test_auto_is_a_recorded_choice_and_changes_no_answer(comm, tmp_path_factory):
    folder = comm.bcast(str(tmp_path_factory.mktemp("auto")) if comm.rank == 0 else None)
    path = f"{folder}/m.h5"
    if comm.rank == 0:
        write_model(path, model_file(vit_config()))
    comm.Barrier()
    even = astra_mpi.load(path, comm=comm, strategy="sp")
    auto = astra_mpi.load(path, comm=comm, strategy="sp", weights="auto")
    inputs, _ = random_batch(even.config, 2)
    assert np.allclose(even(inputs), auto(inputs), atol=1e-5)
    assert even.report["choices"]["weights"] == "even"
    weights = auto.report["choices"]["weights"]
    assert weights == auto.cut_weights
    assert len(weights) == comm.size
    assert max(weights) == 1
    assert min(weights) > 0
