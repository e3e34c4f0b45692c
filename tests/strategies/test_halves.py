"""A batch as two halves in turns: the bits of the halves by themselves, and less waiting."""

import json
import sys

import h5py
import numpy as np
import pytest

from astra_mpi import load
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.costs.latency import Network, Speeds, in_turns, latency
from astra_mpi.costs.work import Cost, RankWork, Stage, Transfer, Work
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import write_model
from astra_mpi.measure.bench import _LANES, trace
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.oracle.verify import verify
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file, vit_config
from helpers.job import write_job
from helpers.processes import MPIRUN, start
from helpers.turns import by_turns

CASES = {
    "vit": (vit_config(n_layers=4), None, dict(predict="linear", stages=3)),
    "bert": (bert_config(pooling="cls", n_layers=4, n_heads=4, n_kv_heads=4), 9, dict(predict="next", stages=2)),
    "gpt2": (gpt2_config(n_layers=3), 13, dict(stages=1)),
    "windows": (llama_config(n_layers=4, windows=(0, 4, 0, 4)), 19, dict(predict="linear", stages=2)),
}
#: of which a block takes longer than what Python does for it
WIDE = bert_config(n_layers=4, d_model=96, d_ff=384, max_positions=64)
STRATEGIES = ("sp", "sp:kv:int8", "tp", "bp", "bp:sp", "segment_means:4", "astra", "astra:late")


def make_model(comm, case, **conditions):
    config, _, codec = CASES[case]
    file = model_file(config, CodecConfig(site="normed", codebook_size=16, **codec))
    uneven = [1.0 + 2 * (r % 3) for r in range(comm.size)]
    return Model(file, comm, get_backend("numpy", comm), uneven, parse_conditions(comm.size, **conditions))


def inputs_of(case, n=5):
    return random_batch(CASES[case][0], n, CASES[case][1], seed=1, ragged=True)


def part_of(inputs, mask, sequences):
    return inputs[sequences], None if mask is None else mask[sequences]


@pytest.mark.mpi
@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_the_halves_by_themselves(comm, case):
    """Answers, hidden states and, where a message is of whole bytes, bytes; against the whole batch to rounding."""
    model, given = make_model(comm, case), inputs_of(case)
    for strategy in STRATEGIES:
        if model.obstacle(strategy):
            continue
        model.use(strategy)
        found = {}
        for model.halves in (False, True):
            found[model.halves] = *model(*given, gather=True), model.report
        assert [report["halves"] for *_, report in found.values()] == [False, comm.size > 1]
        sent, formula = (found[True][2][name] for name in ("contributed_bytes", "formula_bytes"))
        assert sent == formula
        if "astra" not in strategy:
            assert sent == found[False][2]["contributed_bytes"]
        spans = [part.sequences for part, _ in model.taken]
        model.halves = False
        each = [model(*part_of(*given, span), gather=True) for span in spans]
        assert (np.concatenate([answer for answer, _ in each]) == found[True][0]).all()
        np.testing.assert_allclose(found[True][0], found[False][0], atol=1e-5 * np.abs(found[False][0]).max())
        if comm.rank == 0:
            for span, (_, hidden) in zip(spans, each, strict=True):
                assert (found[True][1][span, : hidden.shape[1]] == hidden).all()


@pytest.mark.mpi
@by_turns(
    ("case", "conditions"),
    ["windows", "bert"],
    [{}, {"network": "real,loss=40%", "seed": 3}, {"deadline": "0s", "network": "100Mbps,rtt=1ms", "clock": "virtual"}],
)
def test_halves_equal_the_oracle(comm, case, conditions):
    """Where codes are lost or late, each half is judged by what it has missed itself."""
    model = make_model(comm, case, **conditions)
    model.halves = True
    checks = verify(model, *inputs_of(case), ["astra"] if conditions else ["tp", "segment_means", "astra"])
    assert all(check.passed for check in checks), checks
    assert model.report["halves"] == (comm.size > 1)


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", ["sp", "tp", "bp:sp", "astra:late"])
@pytest.mark.parametrize("failing", ["block", "head"])
def test_a_failure_in_one_half_ends_all_ranks(comm, strategy, failing):
    """In the middle of a block of the second half, or after its last one."""
    model = make_model(comm, "bert")
    if model.obstacle(strategy):
        return
    model.use(strategy)
    model.halves = True
    given = inputs_of("bert")
    want = model(*given)
    where, name = (model.blocks[3], "attention_input") if failing == "block" else (model.family, "pool")
    whole, calls = getattr(where, name), []

    def fail(*arguments):
        calls.append(name)
        return whole(*arguments) if len(calls) == 1 and comm.size > 1 else 1 / 0

    if comm.rank == comm.size - 1:
        setattr(where, name, fail)
    with pytest.raises(Exception, match="division by zero"):
        model(*given)
    setattr(where, name, whole)
    assert (model(*given) == want).all()


@pytest.mark.mpi
def test_one_half_computes_while_the_other_waits(comm):
    """By the virtual clock: a pass takes little more than its messages or its work, whichever is longer."""
    if comm.size > 4:
        pytest.skip("ranks that share few cores are timed badly")
    inputs, _ = random_batch(WIDE, 8, 64, seed=0)
    file, took = model_file(WIDE), {}
    for halves in (False, True):
        conditions = parse_conditions(comm.size, network="1Gbps,rtt=40ms", clock="virtual", speed=[10.0])
        model = Model(file, comm, get_backend("numpy", comm), conditions=conditions)
        model.halves = halves
        model.use("sp")
        model(inputs)
        times = [model(inputs) is not None and model.report["latency_s"] for _ in range(3)]
        took[halves] = min(times, key=lambda time: time["total"])
    if comm.size == 1:
        assert took[True]["exchange_wait"] < 1e-3
        return
    hidden_s = min(20e-3, took[False]["compute"] / 8)  # of each exchange: half a round trip, or half a block
    # a quarter of it: CPU seconds of ranks that others disturb are not alike
    assert took[True]["exchange_wait"] < took[False]["exchange_wait"] - WIDE.n_layers * hidden_s / 4
    text = trace(model, inputs, None)
    if comm.rank == 0:
        assert all(f'"{name}"' in text for name in _LANES[:4])


@pytest.mark.mpi
def test_where_it_pays(comm, tmp_path_factory):
    """A long round trip, and not a fast network; recorded, kept for batches to come, and never for one sequence."""
    if comm.size > 4:
        pytest.skip("ranks that share few cores are timed badly")
    path = tmp_path_factory.mktemp("halves", numbered=True) / f"{comm.rank}.h5"
    write_model(path, model_file(WIDE))
    inputs, _ = random_batch(WIDE, 8, 64, seed=0)
    for network, pays in (("1Gbps,rtt=200ms", True), ("1Tbps", False), ("real", False)):
        clock, speed = ("wall", 1.0) if network == "real" else ("virtual", 100.0)
        model = load(str(path), comm=comm, strategy="sp", network=network, clock=clock, speed=speed)
        model(inputs[:1])
        assert not model.report["halves"] and "halves" not in model.report["choices"]
        for batch in (inputs, inputs[:2]):
            model(batch)
            assert model.report["halves"] == (pays and comm.size > 1)
            assert model.report["choices"].get("halves") == (None if comm.size == 1 else pays)
        model(inputs[:1])
        assert not model.report["halves"]
    for halves in (True, False):
        model = load(str(path), comm=comm, strategy="sp", halves=halves)
        model(inputs)
        assert model.report["halves"] == (halves and comm.size > 1)


@pytest.mark.skipif(MPIRUN is None, reason="no mpirun")
def test_a_job_keeps_what_it_has_chosen(tmp_path):
    write_job(tmp_path)
    found = {}
    for halves in ("true", "false"):
        keys = (
            "parallel.strategy=sp",
            f"parallel.halves={halves}",
            f"output.path={tmp_path / halves}.h5",
            "run.batch=4",
        )
        full = [MPIRUN, "-n", "2", sys.executable, "-m", "astra_mpi", "run", str(tmp_path / "deck.toml"), *keys]
        done = start(*full, timeout=60)
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / f"{halves}.json").read_text())
        assert summary["choices"]["halves"] == json.loads(halves)
        with h5py.File(tmp_path / f"{halves}.h5") as file:
            found[halves] = {name: file["outputs"][name][()] for name in file["outputs"]}
    for name, want in found["false"].items():
        np.testing.assert_allclose(found["true"][name], want, atol=1e-5)


ROUND = Speeds(1e9, 1e9, 1e9, 1e9, 1e9, 1e9, 0.0)


def cost(n, repeats, exchange_bytes, late=False):
    """n sequences: of each, 1 s before a message can leave, 1 s beside it and 1 s after it."""
    second = Work(gemm=1e9 * n)
    sent = (exchange_bytes * n,) * 2
    transfer = Transfer("gather", sent, 0.0, late=late)
    return Cost("sp", True, (Stage(repeats, (RankWork(second, second, second),) * 2, transfer),), closing_bytes=4 * n)


def test_predicted_turns():
    """Two halves of a sequence each, 8 Mbit/s: a message of N bytes takes N / 1e6 s."""
    fast = Network(8e6, 0.0)
    whole = latency(cost(2, 10, 3_000_000), (ROUND,) * 2, fast)
    assert whole.total == pytest.approx(10 * (2 + 6 + 2))  # a port takes in 6 MB while 2 s are computed
    halved = in_turns([cost(1, 10, 3_000_000)] * 2, (ROUND,) * 2, fast)
    # the port is never idle: 20 messages of 3 s, 1 s before the first and 1 s after the last
    assert halved.total == pytest.approx(1 + 60 + 1, rel=1e-4)
    assert halved.compute == pytest.approx(whole.compute) and halved.wait == pytest.approx(halved.total - 60)
    distant = Network(8e12, 4.0)  # 2 s for any message: one half has the other's 3 s for that, but at the ends
    assert latency(cost(2, 10, 8), (ROUND,) * 2, distant).total == pytest.approx(62, rel=1e-3)  # the closing hop
    assert in_turns([cost(1, 10, 8)] * 2, (ROUND,) * 2, distant).total == pytest.approx(62, rel=1e-3)
    far = Network(8e12, 12.0)  # 6 s
    assert latency(cost(2, 10, 8), (ROUND,) * 2, far).total == pytest.approx(10 * (2 + 6 + 2) + 6, rel=1e-3)
    assert in_turns([cost(1, 10, 8)] * 2, (ROUND,) * 2, far).total == pytest.approx(10 * 8 + 3 + 6, abs=3)


def test_one_pass_in_turns_is_a_pass():
    for late in (False, True):
        alone = cost(3, 7, 1_000_000, late)
        for network in (Network(8e6, 0.0), Network(8e6, 3.0), Network(8e9, 5.0)):
            once = in_turns([alone], (ROUND,) * 2, network)
            assert once.total == pytest.approx(latency(alone, (ROUND,) * 2, network).total)
