"""Loading on several ranks: what is wrong on one is told by all."""

import dataclasses

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import astra_mpi
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.errors import AstraError, InputError
from astra_mpi.files.codecfile import write_codebooks
from astra_mpi.files.modelfile import write_model
from astra_mpi.models.images import Preprocess
from helpers.fakes import bert_config, model_file, random_codec, vit_config

pytestmark = pytest.mark.mpi


@pytest.fixture
def folder(comm, tmp_path):
    """One folder that every rank sees."""
    path = bytearray(str(tmp_path).encode().ljust(1024))
    comm.Bcast(path, root=0)
    return type(tmp_path)(path.decode().rstrip())


def write_on_root(comm, path, file):
    if comm.rank == 0:
        write_model(path, file)
    comm.Barrier()
    return path


def assert_raised_everywhere(comm, error, message, **options):
    with pytest.raises(error, match=message) as caught:
        astra_mpi.load(comm=comm, **options)
    assert caught.value.collective
    return str(caught.value)


def test_loaded_model_answers_alike_on_all_ranks(comm, folder):
    config = bert_config(normalize=True)
    path = write_on_root(comm, folder / "model.h5", model_file(config))
    model = astra_mpi.load(str(path), comm=comm)
    inputs, mask = random_batch(config, 2, 11, ragged=True)
    answer = model(inputs, mask)
    assert answer.shape == (2, config.d_model)
    np.testing.assert_allclose(np.linalg.norm(answer, axis=1), 1, atol=1e-5)
    every = np.empty((comm.size, *answer.shape), answer.dtype)
    comm.Allgather(answer, every)
    assert (every == every[0]).all()


def test_pooling_can_be_chosen(comm, folder):
    path = write_on_root(comm, folder / "model.h5", model_file(bert_config()))
    inputs, mask = random_batch(bert_config(), 1, 5)
    mean = astra_mpi.load(str(path), comm=comm, strategy="sp")(inputs, mask)
    first = astra_mpi.load(str(path), comm=comm, strategy="sp", pooling="cls", normalize=True)(inputs, mask)
    assert not np.allclose(mean / np.linalg.norm(mean), first)
    assert_raised_everywhere(comm, InputError, "pooler weights", path=str(path), pooling="pooler")


def test_first_numbers_of_an_embedding(comm, folder):
    config = bert_config(normalize=True, embedding_size=7)
    short = write_on_root(comm, folder / "short.h5", model_file(config))
    whole = write_on_root(comm, folder / "whole.h5", model_file(bert_config(normalize=True)))
    batch = random_batch(config, 2, 13)
    answer = astra_mpi.load(str(short), comm=comm, strategy="sp")(*batch)
    np.testing.assert_array_equal(answer, astra_mpi.load(str(whole), comm=comm, strategy="sp")(*batch)[:, :7])


def test_model_files_that_differ(comm, folder):
    mine = folder / f"model{comm.rank}.h5"
    write_model(mine, model_file(vit_config(), seed=int(comm.rank == comm.size - 1)))
    if comm.size == 1:
        astra_mpi.load(str(mine), comm=comm)
    else:
        message = assert_raised_everywhere(comm, InputError, "differs between ranks; copy", path=str(mine))
        assert f"rank {comm.size - 1} has another" in message


def test_codebooks_that_differ(comm, folder):
    """The same model everywhere, but one rank's file has other codebooks inside."""
    mine = folder / f"model{comm.rank}.h5"
    file = model_file(vit_config())
    other = random_codec(vit_config(), file.codec.config, seed=7)
    write_model(mine, dataclasses.replace(file, codec=other) if comm.rank == comm.size - 1 else file)
    if comm.size == 1:
        astra_mpi.load(str(mine), comm=comm)
    else:
        assert_raised_everywhere(comm, InputError, "codebooks differ between ranks", path=str(mine))


def test_file_missing_on_one_rank(comm, folder):
    path = write_on_root(comm, folder / "model.h5", model_file(vit_config()))
    mine = str(path) if comm.rank < comm.size - 1 else str(folder / "nothing.h5")
    message = assert_raised_everywhere(comm, InputError, "nothing.h5", path=mine)
    assert message.startswith(f"rank {comm.size - 1}: ") or comm.size == 1


def test_codebook_file_in_place_of_the_models_own(comm, folder):
    config = bert_config()
    file = model_file(config)
    path = write_on_root(comm, folder / "model.h5", dataclasses.replace(file, codec=None))
    assert_raised_everywhere(
        comm, InputError, r"model\.h5 with strategy astra.*no codebooks", path=str(path), strategy="astra"
    )
    digest = astra_mpi.load(str(path), comm=comm, strategy="single").digest
    codec = random_codec(config, CodecConfig(stages=1, codebook_size=4))
    if comm.rank == 0:
        write_codebooks(folder / "books.h5", codec, digest, {})
        write_codebooks(folder / "foreign.h5", codec, "0" * 64, {})
    comm.Barrier()
    model = astra_mpi.load(str(path), comm=comm, codebooks=str(folder / "books.h5"))
    inputs, mask = random_batch(config, 1, 9)
    model(inputs, mask)
    assert model.report["bits_per_token_per_block"] == 2
    foreign = str(folder / "foreign.h5")
    assert_raised_everywhere(
        comm, InputError, "foreign.h5 holds codebooks of another model", path=str(path), codebooks=foreign
    )


def test_exact_search_of_codebooks_that_have_a_subspace(comm, folder):
    file = model_file(bert_config(), CodecConfig(stages=2, codebook_size=64, encoder="subspace"))
    path = write_on_root(comm, folder / "model.h5", file)
    inputs, mask = random_batch(file.config, 1, 9)
    found = {}
    for encoder in ("auto", "exact"):
        model = astra_mpi.load(str(path), comm=comm, encoder=encoder)
        model(inputs, mask)
        found[model.report["codec"]["encoder"]] = np.concatenate(model.strategy.arrived.codes)
    assert set(found) == {"subspace", "exact"}
    assert comm.size == 1 or (found["subspace"] != found["exact"]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "spp"}, "strategy 'spp' is unknown"),
        ({"backend": "tpu"}, "backend 'tpu' is not available"),
        ({"remote": "guess"}, "remote = 'guess'"),
        ({"strategy": "sp:q"}, "'q' does not fit; use one of single, sp"),
        ({"encoder": "subspace"}, "encoder 'subspace' is unknown; use auto or exact"),
        ({"normalize": True}, "normalize is for embeddings, and this model classifies"),
        ({"weights": [1.0] * 9}, "9 weights for"),
        ({"weights": [-1.0]}, "weights"),
    ],
)
def test_options_that_do_not_fit(comm, folder, options, message):
    path = write_on_root(comm, folder / "model.h5", model_file(vit_config()))
    with pytest.raises(InputError, match=message):
        astra_mpi.load(str(path), comm=comm, **options)


def test_a_received_code_out_of_range_fails_all(comm, folder):
    """The sender does not see its own corrupt message; the end of the forward pass tells it."""
    config = bert_config()
    path = write_on_root(comm, folder / "model.h5", model_file(config, CodecConfig(stages=1, codebook_size=9)))
    model = astra_mpi.load(str(path), comm=comm)
    inputs, mask = random_batch(config, 1, 2 * comm.size)
    if comm.rank == comm.size - 1:
        pack = model.strategy.kernels.pack
        model.strategy.kernels = type("Corrupt", (), dict(vars(model.strategy.kernels)))
        model.strategy.kernels.pack = staticmethod(lambda codes, bits: pack(codes, bits) | 0xFF)
    if comm.size == 1:
        model(inputs, mask)
    else:
        with pytest.raises(AstraError, match="corrupt message"):
            model(inputs, mask)


def test_uint8_images_are_normalised_by_the_model(comm, folder):
    config = vit_config()
    preprocess = Preprocess(config.image_size, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    file = dataclasses.replace(model_file(config), preprocess=preprocess.as_dict())
    model = astra_mpi.load(str(write_on_root(comm, folder / "model.h5", file)), comm=comm, strategy="sp")
    pixels = np.random.default_rng(0).integers(0, 256, (2, *config.image_size, 3), dtype=np.uint8)
    by_hand = (pixels / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(model(pixels), model(by_hand.transpose(0, 3, 1, 2).astype(np.float32)), atol=1e-5)
    with pytest.raises(InputError, match="channels"):
        model(pixels[..., :2])
    model.preprocess = None
    with pytest.raises(InputError, match="uint8 images need the model's preprocessing, and its file has none"):
        model(pixels)


def test_threads(comm, folder):
    path = write_on_root(comm, folder / "model.h5", model_file(vit_config()))
    astra_mpi.load(str(path), comm=comm, threads=1)
    assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    with pytest.raises(InputError, match="at least one"):
        astra_mpi.load(str(path), comm=comm, threads=0)
