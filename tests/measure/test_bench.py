"""bench, verify and calibrate as commands, on small models."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from astra_mpi.calibrate import activations
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import read_model, write_model
from astra_mpi.measure.bench import measure, trace
from astra_mpi.strategies import STRATEGIES
from astra_mpi.wire.laps import PHASES, collect
from helpers.fakes import bert_config, model_file, vit_config


def astra(*arguments, ranks=None, code=0):
    """Run astra-mpi, under mpirun with `ranks`; (stdout, stderr) after a check of the exit code."""
    launcher = [] if ranks is None else [str(Path(sys.executable).parent / "mpirun"), "-n", str(ranks)]
    command = [*launcher, sys.executable, "-m", "astra_mpi", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def vit(tmp_path):
    write_model(tmp_path / "vit.h5", model_file(vit_config()))
    return tmp_path / "vit.h5"


def test_bench_command(vit, tmp_path):
    out, _ = astra("bench", vit, "--repeats", 3, "--json", tmp_path / "b.json", "--trace", tmp_path / "t.json", ranks=2)
    runs = json.loads((tmp_path / "b.json").read_text())["runs"]
    assert [run["strategy"] for run in runs] == ["single", "sp", "tp", "segment_means:8", "astra"]
    for run in runs:
        latency, spread = run["latency_s"], run["spread"]
        assert latency["total"] == pytest.approx(latency["compute"] + latency["exchange_wait"])
        assert latency["total"] == pytest.approx(sum(latency["phases"].values()))
        assert spread["min"] <= latency["total"] <= spread["max"]
        assert run["contributed_bytes"] == run["formula_bytes"]
        assert run["strategy"] in out
    spans = [e for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert {e["pid"] for e in spans} == {0, 1}
    flights = [e for e in spans if e["name"] == "in flight"]
    assert len(flights) == 2 * 2  # ranks * blocks
    for flight in flights:  # the local attention lies inside the flight: the exchange overlaps it
        inside = [e["name"] for e in spans if e["pid"] == flight["pid"] and e is not flight
                  and flight["ts"] <= e["ts"] and e["ts"] + e["dur"] <= flight["ts"] + flight["dur"] + 1]  # fmt: skip
        assert "attention" in inside


def test_bench_says_what_is_latency_only(vit, tmp_path):
    arguments = ("--strategies", "single,bp:sp,sp:int8", "--repeats", 1, "--warmup", 0, "--json", tmp_path / "b.json")
    out, _ = astra("bench", vit, *arguments, ranks=3)
    assert [line.split()[0] for line in out.splitlines()[3:6]] == ["single", "bp:sp", "sp:int8"]
    assert "bp:sp: latency only" in out
    notes = [run.get("note") for run in json.loads((tmp_path / "b.json").read_text())["runs"]]
    assert notes[0] is None and notes[1].startswith("latency only") and notes[2] is None


def test_bench_refuses_a_strategy_that_cannot_be_used(vit):
    _, err = astra("bench", vit, "--strategies", "single,bp", ranks=2, code=2)
    assert err.count("astra-mpi: error:") == 1
    assert "strategy bp: heads 3 cannot be cut into 2 equal parts" in err
    _, err = astra("bench", vit, "--strategies", "sp:int4", ranks=2, code=2)
    assert "strategy 'sp:int4': 'int4' does not fit; use one of single, sp[:x|kv]" in err


def test_a_model_is_not_overwritten(vit):
    before = vit.read_bytes()
    _, err = astra("bench", vit, "--strategies", "single", "--repeats", 1, "--warmup", 0, "--json", vit, code=2)
    assert "is not overwritten" in err
    assert vit.read_bytes() == before


def test_bench_refuses(vit):
    _, err = astra("bench", vit, "--repeats", 0, ranks=2, code=2)
    assert err.count("astra-mpi: error:") == 1
    assert "--repeats must be at least 1" in err


def test_verify_command(vit, tmp_path):
    out, _ = astra("verify", vit, "--json", tmp_path / "v.json", ranks=3)
    checks = json.loads((tmp_path / "v.json").read_text())["checks"]
    assert {check["strategy"].split(":")[0] for check in checks} == set(STRATEGIES)
    assert all(check["passed"] for check in checks)
    assert out.count("agrees") == len(checks)
    assert out.count("agrees, latency only") == 2
    out, _ = astra("verify", vit, "--strategies", "bp,tp", ranks=2)
    assert out.count("skipped: heads 3 cannot be cut into 2 equal parts") == 2
    assert out.count("agrees") == 1


def test_calibrate_command(tmp_path):
    """Codebooks fitted to data quantise it better than those fitted to nothing, and are the same on two ranks."""
    config = bert_config()
    write_model(tmp_path / "m.h5", model_file(config))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (40, 12))
    np.save(tmp_path / "ids.npy", ids)
    arguments = ("calibrate", tmp_path / "m.h5", "--data", tmp_path / "ids.npy", "--stages", 2, "--codebook-size", 32)
    for name, ranks, threads in (("a.h5", None, 2), ("b.h5", 2, 1)):
        out, said = astra(*arguments, "-o", tmp_path / name, "--threads", threads, ranks=ranks)
        assert said.count("warning: 480 tokens are few for codebooks of 32 entries; 4096 are better: ") == 1
        assert f"2/{config.n_layers} blocks" in said and out.count("codebooks") == 1
    first, second = read_model(tmp_path / "a.h5").codec, read_model(tmp_path / "b.h5").codec
    assert first.digest == second.digest
    assert first.config.bits_per_token == 10
    errors = {}
    kernels = get_backend("reference", MPI.COMM_SELF).kernels
    for name in ("m.h5", "a.h5"):
        file = read_model(tmp_path / name)
        model = Model(file, MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF))
        x = activations(model, [(ids, None)], "hidden", 10**6)[0]
        book = file.codec.blocks[0].codebooks[0]
        errors[name] = np.square(x - book.decode(book.encode(x, kernels), kernels)).mean()
    assert errors["a.h5"] < 0.5 * errors["m.h5"]


@pytest.mark.mpi
def test_measure_and_trace_in_process(comm):
    model = Model(model_file(vit_config()), comm, get_backend("numpy", comm))
    model.use("astra")
    inputs, mask = random_batch(model.config, 1)
    astra = model.strategy
    model.use("single")
    single, report = measure(model, [model.strategy, astra], inputs, mask, repeats=3, warmup=1)
    assert (single["strategy"], report["strategy"]) == ("single", "astra")
    assert report["spread"]["repeats"] == 3
    assert single["spread"]["over_first"] == 1
    assert single["spread"]["min"] / report["spread"]["max"] <= report["spread"]["over_first"]
    assert report["spread"]["over_first"] <= single["spread"]["max"] / report["spread"]["min"]
    text = trace(model, inputs, mask)
    assert (text is None) == (comm.rank != 0)
    assert model.laps.events is None


@pytest.mark.mpi
def test_latency_is_that_of_the_rank_the_others_wait_for(comm):
    seconds = dict.fromkeys(PHASES, 0.0)
    busiest = comm.size - 1
    seconds["mlp"] = 1.0 + (comm.rank == busiest)
    seconds["exchange"] = 1.25 - (comm.rank == busiest)
    latency, counted = collect(comm, seconds, [10 + comm.rank, 1])
    assert latency["total"] == 2.25
    assert latency["compute"] == latency["phases"]["mlp"] == 2.0
    assert latency["exchange_wait"] == 0.25
    assert counted.tolist() == [[10 + rank, 1] for rank in range(comm.size)]
