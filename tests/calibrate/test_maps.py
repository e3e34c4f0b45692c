"""`--predict next`: maps from codes to the blocks behind them, for new codebooks or for those that a model has."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpi4py import MPI

from astra_mpi import cli
from astra_mpi.calibrate import activations, fit_codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.counts import as_text, stages_of
from astra_mpi.codec.fit import energy
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.files.codecfile import read_codebooks, write_codebooks
from astra_mpi.files.modelfile import write_model
from helpers.fakes import gpt2_config, llama_config, model_file

CODING = CodecConfig("normed", stages=2, codebook_size=16, encoder="exact", predict="next")


def batches(config, n):
    return [random_batch(config, 3, 25, seed=seed) for seed in range(n)]


def same(a, b):
    assert (a is None) == (b is None)
    assert a is None or a.digest == b.digest


@pytest.mark.mpi
def test_maps_do_not_depend_on_who_fits_them(comm, tmp_path):
    config = llama_config(n_layers=4)
    file, given = model_file(config), batches(config, 3)
    found = fit_codec(file, given, CODING, comm=comm, n_samples=190)
    assert (found is None) == (comm.rank > 0)
    if found is not None:
        same(found, fit_codec(file, given, CODING, n_samples=190, threads=2))
        write_codebooks(tmp_path / "c.h5", found, "base", {})
        same(found, read_codebooks(tmp_path / "c.h5", "base"))
        same(found.exact(), read_codebooks(tmp_path / "c.h5", "base").exact())


@pytest.mark.parametrize("stages", [2, (0, 3, 0, 2, 0)])
def test_maps_are_from_the_last_codes_as_they_are(stages):
    """What a map says errs less than the mean does, and no other linear map of the same codes errs less."""
    config = llama_config(n_layers=5)
    file, given = model_file(config), batches(config, 12)
    kernels = get_backend("numpy", MPI.COMM_SELF).kernels
    coding = replace(CODING, stages=stages)
    codec = fit_codec(file, given, coding, n_samples=800)
    plain = fit_codec(file, given, replace(coding, predict="none"), n_samples=800)
    model = Model(file, MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF))
    true = activations(model, given, "normed", 800)
    assert codec.blocks[0].predictor is None and not codec.blocks[0].codebooks[0].entries.any()
    known = true[0]
    for block, own, rows in zip(codec.blocks[1:], plain.blocks[1:], true[1:], strict=True):
        np.testing.assert_array_equal(block.codebooks[0].entries, own.codebooks[0].entries)
        left = energy(rows - block.predictor.predict(known, None, kernels))
        design = np.column_stack([known, np.ones(len(known))])
        best = energy(rows - design @ np.linalg.lstsq(design, rows, rcond=None)[0])
        assert best <= left * 1.0001 and left < 1.1 * best < energy(rows - rows.mean(axis=0))
        if block.bits_per_token:
            known = block.decode(block.encode(rows, kernels), kernels)


COUNT = st.integers(0, 64)
PER_BLOCK = st.lists(st.one_of(COUNT, st.tuples(COUNT, COUNT)), min_size=1, max_size=9).map(tuple)


@given(st.one_of(COUNT, PER_BLOCK))
def test_stages_of_blocks_are_read_as_they_are_written(counts):
    assert stages_of(as_text(counts)) == counts


def test_command_keeps_codebooks_or_puts_them_into_every_second_block(tmp_path, capsys):
    config = gpt2_config(n_layers=5)
    file = model_file(config, CodecConfig("normed", stages=3, codebook_size=16))
    digest = write_model(tmp_path / "m.h5", file)
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 53, (40, 20)))
    data = ["--data", str(tmp_path / "ids.npy"), "--samples", "600", "--codebook-only"]

    def calibrated(*options):
        words = ["calibrate", str(tmp_path / "m.h5"), *data, "-o", str(tmp_path / "c.h5"), *options]
        code = cli.main(words)
        return code, capsys.readouterr()

    code, told = calibrated("--predict", "next", "--keep-codebooks", "--awaited", "3,4")
    assert code == 0 and "awaited where codes are late: 3, 4" in told.out, told.err
    kept = read_codebooks(tmp_path / "c.h5", digest)
    assert kept.config.awaited == (3, 4)
    for block, own in zip(kept.blocks[1:], file.codec.blocks[1:], strict=True):
        np.testing.assert_array_equal(block.codebooks[0].entries, own.codebooks[0].entries)
        assert block.predictor is not None
    for predict in ("next", "linear"):
        code, told = calibrated("--predict", predict, "--every", "2", "--stages", "2", "--codebook-size", "16")
        assert code == 0 and "6.4 bits per token and block" in told.out, told.err
        codec = read_codebooks(tmp_path / "c.h5", digest)
        assert codec.block_bits == [0, 16, 0, 16, 0] and codec.config.predict == predict
    code, told = calibrated("--predict", "linear", "--stages", "0,2x3,1x0,2", "--codebook-size", "16")
    assert code == 0 and read_codebooks(tmp_path / "c.h5", digest).block_bits == [0, 12, 12, 0, 8], told.err
    for options, message in [
        (["--stages", "0,2x3"], "stages of 3 blocks, the model has 5"),
        (["--stages", "0,2y3"], "'2y3' is not M, NxM or K+V"),
        (["--stages", "4x1+2,0"], "with site kv"),
        (["--stages", "0,4x3", "--predict", "linear", "--every", "2"], "alike in all blocks"),
        (["--keep-codebooks"], "add it"),
        (["--predict", "linear", "--awaited", "5,"], "awaited block [5] of a model of 5 blocks"),
        (["--predict", "linear", "--awaited", "2;3"], "give auto, a number of blocks"),
        (["--predict", "next", "--stages", "1", "--awaited", "2"], "is measured with predict 'linear'"),
        (["--every", "2"], "blocks without codes need maps"),
        (["--predict", "next", "--bits", "32"], "give --stages"),
        (["--predict", "next", "--site", "kv"], "use site normed"),
        (["--predict", "linear", "--kind", "grouped", "--every", "2"], "alike in all blocks"),
    ]:
        code, told = calibrated(*options)
        assert code == 2 and message in told.err, told.err
