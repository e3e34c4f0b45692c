"""Tokens next to another slice with more stages than others: ranks equal the oracle, and send what the formula says."""

import h5py
import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.fit import fit_codebook
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.costs.strategies import STRATEGIES
from astra_mpi.costs.wires import Coding
from astra_mpi.costs.work import Job, shape_of
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.files.codecfile import read_codec, write_codec
from astra_mpi.kernels import cpu
from astra_mpi.oracle.verify import verify
from astra_mpi.strategies.coded.graded import near_ends
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file, random_codec, vit_config
from helpers.turns import by_turns

FAMILIES = {
    "vit": (vit_config(n_layers=3), None),
    "bert-cls": (bert_config(pooling="cls", n_layers=3), 9),
    "gpt2": (gpt2_config(n_layers=3), 13),
    "llama": (llama_config(n_layers=3), 19),
}
NEAR = dict(near=2, near_stages=3)
#: with the bits of ordinary and near tokens in each block
CODECS = {
    "hidden": (CodecConfig(stages=2, codebook_size=16, **NEAR), [(8, 20)] * 3),
    "kv": (
        CodecConfig(site="kv", stages=((1, 3), 0, (2, 0)), codebook_size=9, **NEAR),
        [(16, 40), (0, 0), (8, 20)],
    ),
    "predicted": (
        CodecConfig(site="normed", stages=1, codebook_size=16, predict="linear", **NEAR),
        [None, (4, 16), (4, 16)],
    ),
}


@pytest.mark.mpi
@by_turns(("family", "codec"), FAMILIES, CODECS)
def test_equals_the_oracle_and_the_formula(comm, family, codec):
    (config, n_tokens), (codes, bits) = FAMILIES[family], CODECS[codec]
    model = Model(model_file(config, codes), comm, get_backend("numpy", comm))
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    for check in verify(model, inputs, mask, ["astra:inputs"]):
        assert check.passed, check
    comm.Barrier()
    if comm.size == 1:
        return
    layout = model.layout(model.prepare(inputs, mask).lengths)
    wanted, n_sent, n_bits = 0, 0, 0
    for r in range(comm.size - 1 if layout.forward else comm.size):
        counts = layout.counts[:, r]
        near = int(near_ends(counts, 2, layout.causal).sum())
        wanted += sum(-(-(near * high + (int(counts.sum()) - near) * low) // 8) for low, high in bits[1:])
        n_sent += int(counts.sum())
        n_bits += sum(near * high + (int(counts.sum()) - near) * low for low, high in bits[1:])
    assert sum(model.report["contributed_bytes"]) == wanted
    assert model.report["bits_per_token_per_block"] == pytest.approx(n_bits / n_sent / len(bits))


def test_which_tokens_are_near():
    assert near_ends(np.array([3, 0, 1, 5]), 2, True).astype(int).tolist() == [0, 1, 1, 1, 0, 0, 0, 1, 1]
    assert near_ends(np.array([5, 3]), 1, False).astype(int).tolist() == [1, 0, 0, 0, 1, 1, 0, 1]


def test_costs_count_near_tokens():
    config, (codes, bits) = FAMILIES["gpt2"][0], CODECS["kv"]
    cost = STRATEGIES["astra"](Job(shape_of(config), (5, 4, 4)), Coding(codes))
    sent = [stage.transfer.contributed for stage in cost.stages if stage.transfer for _ in range(stage.repeats)]
    wanted = [tuple(-(-(2 * high + (n - 2) * low) // 8) if n else 0 for n in (5, 4, 0)) for low, high in bits if high]
    assert sorted(sent) == sorted(wanted)


def test_ordinary_codes_are_those_of_a_codec_without_near_tokens(tmp_path):
    x = np.random.default_rng(0).normal(size=(600, 12)).astype(np.float32)
    plain = fit_codebook(x, CodecConfig(stages=2, codebook_size=16), 0, cpu)
    book = fit_codebook(x, CodecConfig(stages=2, codebook_size=16, **NEAR), 0, cpu)
    near = np.arange(600) % 5 == 0
    codes = book.graded(x, near, cpu)
    assert np.array_equal(codes[:, :2], plain.encode(x, cpu)) and (codes[~near, 2:] == 15).all()
    np.testing.assert_allclose(
        book.decode(codes, cpu)[~near], plain.decode(plain.encode(x, cpu), cpu)[~near], atol=1e-6
    )
    error = ((x - book.decode(codes, cpu)) ** 2).sum(axis=1)
    assert error[near].mean() < 0.7 * error[~near].mean()
    codec = random_codec(llama_config(), CodecConfig(site="kv", stages=((1, 3), 0), codebook_size=9, **NEAR))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        write_codec(file, codec)
    with h5py.File(tmp_path / "c.h5") as file:
        back = read_codec(file)
    assert back.config == codec.config and back.digest == codec.digest
    kv = np.random.default_rng(1).normal(size=(7, codec.blocks[0].width)).astype(np.float32)
    mask = np.arange(7) > 4
    for block in back.blocks:
        codes = block.encode(kv, cpu, mask)
        message = block.pack(codes, cpu, mask)
        assert len(message) == block.message_bytes(7, 2)
        assert np.array_equal(block.unpack(message, 7, cpu, mask), codes)


@pytest.mark.parametrize("settings", [dict(near=3), dict(near_stages=2), dict(kind="grouped", near=1, near_stages=1)])
def test_settings_that_cannot_be(settings):
    with pytest.raises(InputError, match="near"):
        CodecConfig(**settings)
