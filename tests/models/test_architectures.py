"""Decoders that are a recipe of parts and a mapping of names: against transformers, on ranks, and token by token."""

import architectures
import numpy as np
import pytest
from mpi4py import MPI

import astra_mpi
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.costs.strategies import STRATEGIES as COSTS
from astra_mpi.costs.wires import Coding
from astra_mpi.costs.work import Job, shape_of
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.models import FAMILIES
from astra_mpi.models.decoder import Decoder
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.oracle.verify import verify
from helpers.architectures import ARCHITECTURES, on_ranks
from helpers.checkpoints import HOLES, LEFT, RIGHT, alone, close, logits, save_architecture
from helpers.fakes import model_file

ON_RANKS = on_ranks()
#: exact ones, and the method
STRATEGIES = ("single", "sp", "sp:kv", "sp:kv:int8", "tp", "astra", "astra:inputs", "segment_means:3")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_transformers(tmp_path, name):
    """Padding on the right, on the left and with holes, sequences of different lengths; every weight random."""
    theirs = save_architecture(tmp_path, name)
    ours = astra_mpi.load(str(tmp_path / "model.h5"), comm=MPI.COMM_SELF, strategy="single")
    for mask in (RIGHT, LEFT, HOLES):
        ids = np.random.default_rng(0).integers(0, ours.config.vocab_size, mask.shape)
        want = (alone if "long" in name else logits)(theirs, ids, mask)
        answer, every = ours(ids, mask, gather=True)
        for kept, expected, got, last in zip(mask, want, every, answer, strict=True):
            close(got[: kept.sum()], expected[kept])
            if kept.any():
                close(last, expected[kept][-1])


def test_every_decoder_is_among_them():
    made = {name.split("-")[0] for name in ARCHITECTURES}
    decoders = {name.removesuffix("_text") for name, family in FAMILIES.items() if issubclass(family, Decoder)}
    assert decoders - {"gpt2", "llama"} == made


def test_the_table_of_the_docs_is_up_to_date():
    made = architectures.PAGE.read_text().split(architectures.BEGIN)[1].split(architectures.END)[0]
    assert made == f"\n\n{architectures.table()}\n", "run python jobs/checks/architectures.py --write"


def make_model(comm, name):
    config, site = ON_RANKS[name]
    return Model(
        model_file(config, CodecConfig(site=site, stages=2, codebook_size=16)), comm, get_backend("numpy", comm)
    )


@pytest.mark.mpi
@pytest.mark.parametrize("name", ON_RANKS)
def test_ranks_compute_what_the_oracle_computes(comm, name):
    """Every strategy that can be used, on sequences of different lengths and with holes."""
    model = make_model(comm, name)
    usable = [spec for spec in STRATEGIES if not model.obstacle(spec)]
    assert set(STRATEGIES) - set(usable) <= {"tp", "segment_means:3"}
    inputs, mask = random_batch(model.config, 3, 17, seed=1, ragged=True)
    holes = mask & (np.random.default_rng(2).random(mask.shape) < 0.8)
    for check in verify(model, inputs, holes, usable):
        assert check.passed and not check.reason, check


@pytest.mark.mpi
@pytest.mark.parametrize("spec", ["sp", "sp:kv", "astra"])
def test_only_tokens_in_a_window_travel(comm, spec):
    """Bytes as counted by hand: window - 1 tokens to the next rank in blocks with a window, all in others."""
    config, _ = ON_RANKS["gemma2"]  # windows of 5, none, 5
    model, n = make_model(comm, "gemma2"), 8
    model.use(spec)
    ids = np.random.default_rng(4).integers(0, config.vocab_size, (2, n * min(comm.size, 3)))
    if comm.size > 3:
        pytest.skip("sequences would be longer than the model takes")
    model(ids)
    per_token = {"sp": 32 * config.d_model, "sp:kv": 64 * config.d_kv, "astra": model.codec.config.bits_per_token}[spec]
    sizes = [per_token * 2 * n // 8, per_token * 2 * 4 // 8]  # of both sequences
    sent = [0 if r == comm.size - 1 else sizes[0] + 2 * sizes[1] for r in range(comm.size)]
    got = [0 if r == 0 else r * sizes[0] + 2 * sizes[1] for r in range(comm.size)]
    assert model.report["contributed_bytes"] == model.report["formula_bytes"] == sent
    assert model.report["port_bytes"] == got
    job = Job(shape_of(config), (n,) * comm.size, batch=2)
    stages = COSTS[spec](job, Coding(model.codec.config)).stages
    planned = [stage.repeats * np.array(stage.transfer.contributed) for stage in stages if stage.transfer]
    assert [sum(of_rank) for of_rank in zip(*planned, strict=True)] == (sent if comm.size > 1 else [])


@pytest.mark.mpi
@pytest.mark.parametrize("treatment", ["drop", "mean"])
def test_lost_messages_of_blocks_with_windows(comm, treatment):
    config, site = ON_RANKS["mistral"]
    conditions = parse_conditions(comm.size, network="1000Mbps,loss=40%", missing=treatment, seed=4)
    file = model_file(config, CodecConfig(site=site, stages=2, codebook_size=16))
    model = Model(file, comm, get_backend("numpy", comm), conditions=conditions)
    inputs, mask = random_batch(config, 3, 17, seed=1, ragged=True)
    for check in verify(model, inputs, mask, ["astra"]):
        assert check.passed and not check.reason, check


@pytest.mark.mpi
@pytest.mark.parametrize("name", ON_RANKS)
def test_new_tokens_are_those_of_a_whole_pass(comm, name):
    """Kept keys, windows and caps in decoding, alone and merged."""
    model, n_new = make_model(comm, name), 4
    ids = np.random.default_rng(5).integers(0, model.config.vocab_size, (2, 10))
    whole = ids
    model.use("single")
    for _ in range(n_new):
        whole = np.concatenate([whole, model(whole).argmax(axis=1)[:, None]], axis=1)
    for strategy in ("single", "sp", "sp:kv"):
        model.use(strategy)
        for decode in ("local", "merged"):
            new = model.generate(ids, max_new_tokens=n_new, decode=decode)
            np.testing.assert_array_equal(new, whole[:, 10:], err_msg=f"{strategy} {decode}")
