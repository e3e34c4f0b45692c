"""Float32 weights leave the file's pages for large ones where no other rank of the machine reads the same ones."""

from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import astra_mpi
from astra_mpi.device.weights import mapped_file
from astra_mpi.files.modelfile import write_model
from astra_mpi.kernels.aligned import LINE
from astra_mpi.ranks.broadcast import broadcast_text
from helpers.fakes import gpt2_config, model_file

LAYERS = ("o", "fc1", "fc2")


@pytest.fixture
def path(comm, tmp_path):
    shared = Path(broadcast_text(comm, str(tmp_path))) / "model.h5"
    if comm.rank == 0:
        write_model(shared, model_file(gpt2_config(n_layers=comm.size, d_model=96, d_ff=384)))
    comm.Barrier()
    return str(shared)


def mapped(model):
    return [mapped_file(block.layers[name]) is not None for block in model.blocks for name in LAYERS]


@pytest.mark.mpi
def test_ranks_that_read_the_same_share_the_pages_of_the_file(comm, path):
    ids = np.arange(7)[None]
    shared = astra_mpi.load(path, comm=comm, strategy="sp")
    assert all(mapped(shared)) == (comm.size > 1) and any(mapped(shared)) == (comm.size > 1)
    assert not any(mapped(astra_mpi.load(path, comm=comm, strategy="sp", network="10Mbps", clock="virtual")))
    alone = astra_mpi.load(path, comm=MPI.COMM_SELF, strategy="single")
    assert not any(mapped(alone))
    stages = astra_mpi.load(path, comm=comm, strategy="single", grid=f"1x{comm.size}x1", handed_on="float32")
    assert not any(mapped(stages.model if comm.size > 1 else stages))
    np.testing.assert_allclose(shared(ids), alone(ids), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stages(ids), alone(ids), rtol=1e-4, atol=1e-5)


def test_moved_weights_are_the_same_and_count_once(path):
    moved = astra_mpi.load(path, comm=MPI.COMM_SELF, strategy="single")
    moved(np.arange(5)[None])
    for block in moved.blocks:
        for name in LAYERS:
            weight = block.layers[name]
            np.testing.assert_array_equal(weight, block.w[f"{name}.weight"])
            assert weight.strides[0] % (2 * LINE) == LINE and weight.ctypes.data % LINE == 0
    word = moved.family.w["embed.word"]  # which the head multiplies by
    np.testing.assert_array_equal(word, moved.weights["embed.word"])
    assert mapped_file(word) is None and mapped_file(moved.weights["embed.word"]) is not None
    assert moved.report["weight_bytes"] == [sum(weight.nbytes for weight in moved.weights.values())]
