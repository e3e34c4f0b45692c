"""Weights lie in large pages, which ranks of a machine that hold the same blocks share."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import astra_mpi
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.device.memory import _cores
from astra_mpi.device.weights import mapped_file
from astra_mpi.files.modelfile import write_model
from astra_mpi.kernels import cpu
from astra_mpi.kernels.aligned import LINE, PAGE, lasting
from astra_mpi.kernels.cpu import _encode_narrow
from astra_mpi.kernels.pages import SharedPages
from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.ranks.machine import ranks_here
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


def check_shared(comm, model, arrays):
    """Each array is in the pages that ranks share, at the same place on all, and no two are."""
    memory = model.backend.memory.pages._memory
    mine = np.array([array.ctypes.data - memory.ctypes.data for array in arrays])
    assert ((mine > 0) & (mine < memory.nbytes)).all() and len(set(mine)) == mine.size
    every = np.empty((comm.size, mine.size), mine.dtype)
    comm.Allgather(mine, every)
    assert (every == every[0]).all()


@pytest.fixture
def shares(comm):
    """Whether ranks can have large pages in common here: several of one machine, which gives such pages."""
    able = np.array([SharedPages.create(PAGE) is not None], np.int64) * (ranks_here(comm) == comm.size)
    comm.Allreduce(MPI.IN_PLACE, able, op=MPI.MIN)
    if comm.size > 1 and not able[0]:
        pytest.skip("ranks can have no large pages in common here")
    return comm.size > 1


@pytest.mark.mpi
def test_weights_leave_the_pages_of_the_file_for_large_ones_that_ranks_share(comm, path, shares):
    ids = np.arange(7)[None]
    alone = astra_mpi.load(path, comm=MPI.COMM_SELF, strategy="single")
    assert not any(mapped(alone)) and alone.backend.memory.pages is None
    shared = astra_mpi.load(path, comm=comm, strategy="sp")
    assert not any(mapped(shared)) and (shared.backend.memory.pages is None) == (comm.size == 1)
    if shares:
        check_shared(comm, shared, [block.layers[name] for block in shared.blocks for name in LAYERS])
    stages = astra_mpi.load(path, comm=comm, strategy="single", grid=f"1x{comm.size}x1", handed_on="float32")
    part = stages.model if comm.size > 1 else stages
    assert not any(mapped(part)) and part.backend.memory.pages is None
    np.testing.assert_allclose(shared(ids), alone(ids), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stages(ids), alone(ids), rtol=1e-4, atol=1e-5)


@pytest.mark.mpi
@pytest.mark.parametrize("compute", ["bfloat16", "int8"])
def test_packed_weights_are_shared_and_the_same(comm, path, compute, shares):
    ids = np.arange(9)[None]
    shared = astra_mpi.load(path, comm=comm, strategy="sp", compute=compute)
    alone = astra_mpi.load(path, comm=MPI.COMM_SELF, strategy="single", compute=compute)
    if shares and shared.blocks[0].kernels.products_path().name != "widened":
        check_shared(comm, shared, [block.layers[name].strips.words for block in shared.blocks for name in LAYERS])
    for here, there in zip(shared.blocks, alone.blocks, strict=True):
        for name in LAYERS:
            np.testing.assert_array_equal(np.asarray(here.layers[name]), np.asarray(there.layers[name]))
    np.testing.assert_allclose(shared(ids), alone(ids), rtol=0.05, atol=0.05)


@pytest.mark.mpi
def test_where_one_rank_cannot_have_them_none_has(comm, path, monkeypatch):
    """Ranks then read the pages of the file, which they share; on an emulated network each moves them for itself."""
    if comm.rank == comm.size - 1:
        missing = classmethod(lambda cls, *_: None)
        monkeypatch.setattr(SharedPages, "create", missing)
        monkeypatch.setattr(SharedPages, "join", missing)
    shared = astra_mpi.load(path, comm=comm, strategy="sp")
    assert shared.backend.memory.pages is None
    assert all(mapped(shared)) == (comm.size > 1) and any(mapped(shared)) == (comm.size > 1)
    emulated = astra_mpi.load(path, comm=comm, strategy="sp", network="10Mbps", clock="virtual")
    assert emulated.backend.memory.pages is None and not any(mapped(emulated))


@pytest.mark.mpi
def test_ranks_near_other_memory_do_not_share_it(comm, path, monkeypatch, shares):
    alone = astra_mpi.load(path, comm=MPI.COMM_SELF, strategy="single")
    monkeypatch.setattr("astra_mpi.device.memory._node", lambda: comm.rank % 2)
    shared = astra_mpi.load(path, comm=comm, strategy="sp")
    neighbours = len(range(comm.rank % 2, comm.size, 2))
    assert (shared.backend.memory.pages is None) == (neighbours == 1)
    ids = np.arange(7)[None]
    np.testing.assert_allclose(shared(ids), alone(ids), rtol=1e-4, atol=1e-5)


@pytest.mark.mpi
@pytest.mark.parametrize("groups", [1, 2])
def test_tables_of_far_keys_are_shared(comm, path, shares, groups):
    """Finished rows where a token is one code, else parts of sums."""
    coded = Path(path).with_name(f"coded-{groups}.h5")
    if comm.rank == 0:
        file = model_file(
            gpt2_config(n_layers=2, d_model=96, d_ff=384), CodecConfig(kind="grouped", groups=groups, codebook_size=16)
        )
        write_model(coded, file)
    comm.Barrier()
    model = astra_mpi.load(str(coded), comm=comm, strategy="astra", remote="table")
    assert np.isfinite(model(np.arange(8)[None])).all()
    if shares:
        tables = model.strategy.remote.tables
        check_shared(comm, model, [table.rows if groups == 1 else table.tables for table in tables])


CODECS = {
    "near": CodecConfig(kind="residual", stages=3, codebook_size=64, near=2, near_stages=2),
    "grouped": CodecConfig(kind="grouped", groups=2, codebook_size=16),
    "scalar": CodecConfig(kind="scalar", vector_bits=60, codebook_size=64),
}


@pytest.mark.mpi
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("stages", [1, 2])
def test_codebooks_are_shared(comm, path, shares, codec, stages):
    """Their entries, and what searches make of them; by all ranks, or by those of a stage."""
    if comm.size % stages:
        pytest.skip("not so many stages of ranks")
    coded = Path(path).with_name(f"{codec}.h5")
    if comm.rank == 0:
        write_model(coded, model_file(gpt2_config(n_layers=2, d_model=96, d_ff=384), CODECS[codec]))
    comm.Barrier()
    loaded = astra_mpi.load(str(coded), comm=comm, strategy="astra", grid=f"1x{stages}x{comm.size // stages}")
    model = loaded if stages == 1 else loaded.model
    whole = [block.codebooks[0] for block in loaded.codec.blocks]
    books = [block.codebooks[0] for block in model.codec.blocks]
    assert all(any(book is other for other in whole) for book in books)  # not in memory twice
    if not shares or model.comm.size == 1:
        assert model.backend.memory.pages is None
        return
    arrays = [array for book in whole for array in (book.entries, book.half_norms, *(book.transform or ()))]
    heads = [book.head.entries for book in whole if book.head is not None]
    searched = [part for book in books for part in (book.searched, book._ordinary_book[0])] if codec == "near" else []
    if _encode_narrow.fits(64, 96):
        arrays += [_encode_narrow._packed.of[id(part)][1].strips for part in searched]
    check_shared(model.comm, model, arrays + heads)


@pytest.mark.parametrize("codec, basis", [*((codec, False) for codec in CODECS), ("near", True)])
def test_codebooks_elsewhere_give_the_same_codes(codec, basis):
    own = model_file(gpt2_config(n_layers=2, d_model=96, d_ff=384), CODECS[codec]).codec
    rng = np.random.default_rng(0)
    if basis:
        narrow = rng.standard_normal((96, 64)).astype(np.float32)
        own = Codec(own.config, [b.with_books([replace(b.codebooks[0], basis=narrow)]) for b in own.blocks])
    kept, x, near = own.kept(lasting), rng.standard_normal((50, 96)).astype(np.float32), np.arange(50) % 3 == 0
    kept.make_ready(lasting, cpu)
    assert kept.digest == own.digest
    for there, here in zip(kept.blocks, own.blocks, strict=True):
        codes = here.encode(x, cpu)
        np.testing.assert_array_equal(there.encode(x, cpu), codes)
        np.testing.assert_array_equal(there.encode(x, cpu, near), here.encode(x, cpu, near))
        np.testing.assert_array_equal(there.decode(codes, cpu), here.decode(codes, cpu))
        assert not np.shares_memory(there.codebooks[0].entries, here.codebooks[0].entries)


@pytest.mark.parametrize("listed, cores", [("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), ("\n", set())])
def test_cores_of_a_part_of_memory(listed, cores):
    assert _cores(listed) == cores


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
