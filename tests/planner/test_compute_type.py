"""`compute = "auto"`, jobs that are computed in a type, and what the planner makes of types and storage."""

import dataclasses
import json
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from mpi4py import MPI

import astra_mpi
from astra_mpi import cli
from astra_mpi.costs.decode import decode_cost
from astra_mpi.costs.latency import Network, assumed_speeds
from astra_mpi.costs.setting import Setting
from astra_mpi.costs.types import COMPUTES, assumed, kept_bytes, stored, weight_bytes
from astra_mpi.costs.wires import Coding
from astra_mpi.costs.work import Job, shape_of
from astra_mpi.device.backend import COMPUTES as OF_BACKENDS
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import write_model
from astra_mpi.inputs.samples import TEXTS
from astra_mpi.inputs.text import Tokenizer
from astra_mpi.job.state import describe_job
from astra_mpi.measure.sweep.deck import load_sweep
from astra_mpi.measure.sweep.models import Prepared
from astra_mpi.measure.sweep.points import key_of, points, settings_of
from astra_mpi.measure.sweep.run import Task, _options
from astra_mpi.planner import compute as compute_room
from astra_mpi.planner.decode import decode_plan
from astra_mpi.planner.effect import Effect, change, effect_of, lost_correlation, rise_of_perplexity
from astra_mpi.planner.inputs import read_storage
from astra_mpi.planner.plan import plan
from astra_mpi.planner.trial import ITEMS, trial
from astra_mpi.ranks.signals import StopRequests
from helpers.fakes import bert_config, gpt2_config, model_file, vit_config
from helpers.job import write_job
from helpers.tokenizers import byte_tokenizer

mpi = pytest.mark.mpi
FAST = {"float32": 1e11, "bfloat16": 2e11, "int8": 4e11}


@pytest.fixture
def folder(comm, tmp_path):
    """One folder that every rank sees."""
    path = bytearray(str(tmp_path).encode().ljust(1024))
    comm.Bcast(path, root=0)
    return type(tmp_path)(path.decode().rstrip())


def written(comm, folder, config):
    if comm.rank == 0:
        write_model(folder / "model.h5", model_file(config))
    comm.Barrier()
    return str(folder / "model.h5")


def as_if(monkeypatch, speeds=FAST, **errors):
    """The speeds as given, and answers of a type as much changed as given."""
    monkeypatch.setattr(compute_room, "_slowest_speeds", lambda *_: dict(speeds))
    answers = compute_room._answers

    def changed(model, inputs):
        exact = answers(model, inputs)
        return np.full_like(exact, errors.get(model.backend.compute, 0.0))

    monkeypatch.setattr(compute_room, "_answers", changed)
    effect = Effect("changes the answers by {}", 0.02, lambda exact, other: float(other.max()))
    monkeypatch.setattr(compute_room, "effect_of", lambda config: effect)


@mpi
@pytest.mark.parametrize(
    "errors, wanted",
    [
        (dict(bfloat16=1e-3, int8=0.01), "int8"),
        (dict(bfloat16=1e-3, int8=0.05), "bfloat16"),
        (dict(bfloat16=np.nan, int8=0.05), "float32"),
    ],
)
def test_auto_takes_the_fastest_within_the_bound(comm, folder, monkeypatch, errors, wanted):
    path = written(comm, folder, gpt2_config())
    as_if(monkeypatch, **errors)
    model = astra_mpi.load(path, comm=comm, strategy="sp", compute="auto")
    model(np.ones((1, 6), np.int64))
    told = model.report["compute"]
    assert told["type"] == wanted == model.report["choices"]["compute"] == model.backend.compute
    assert told == comm.allgather(told)[0] and told["bound"] == 0.02
    assert told["tried_on"] == "8 random tokens" and "tried on 8 random tokens" in told["why"]
    assert told["gflops"] == {"float32": 100, "bfloat16": 200, "int8": 400}
    expected = {name: None if np.isnan(x) else pytest.approx(x) for name, x in errors.items()}
    assert told["effects"] == {name: expected[name] for name in told["effects"]} and "int8" in told["effects"]
    assert told["why"].startswith(f"chose compute {wanted}: int8 changes the answers by")
    assert ("not finite" in told["why"]) == bool(np.isnan(errors["bfloat16"]))


@mpi
def test_auto_stays_where_nothing_is_faster(comm, folder, monkeypatch):
    """What another type does to answers is then not asked; the speeds are those of the slowest rank."""
    path = written(comm, folder, vit_config())
    monkeypatch.setattr(compute_room, "_answers", None)
    monkeypatch.setattr(compute_room, "_pass_s", lambda block, x: 1.0 + comm.rank)
    model = astra_mpi.load(path, comm=comm, strategy="single", compute="auto")
    told = model.chosen_compute
    assert told["type"] == "float32" and not told["effects"] and "none is 1.05 times as fast" in told["why"]
    madds = 4 * 24 * 24 + 2 * 24 * 40
    assert set(told["gflops"].values()) == {round(2e-9 * 128 * madds / comm.size, 3)}


def test_effect_is_measured_on_the_models_own_answers(monkeypatch):
    """Of real backends: the same kernels give no change, and rounded ones a small one."""
    backends = {"float32": get_backend("numpy", MPI.COMM_SELF)}
    exact = backends["float32"].kernels

    def rms(x, weight, *given):
        return exact.layer_norm(x, weight * np.float32(1.001), *given)

    rough = SimpleNamespace(**vars(exact))
    rough.layer_norm = rms
    for name, kernels in (("bfloat16", exact), ("int8", rough)):
        backends[name] = dataclasses.replace(backends["float32"], kernels=kernels)
    for config in (gpt2_config(), vit_config()):
        told = compute_room._decision(model_file(config), backends, {"float32": 1.0, "bfloat16": 2.0, "int8": 3.0})
        assert told["type"] == "int8" and 0 < told["effects"]["int8"] < told["bound"]
        told = compute_room._decision(model_file(config), backends, {"float32": 1.0, "bfloat16": 2.0, "int8": 1.01})
        assert told["type"] == "bfloat16" and told["effects"] == {"bfloat16": pytest.approx(0.0, abs=1e-12)}


def test_effects_are_what_the_types_cost():
    """A perplexity measured on texts that the model itself makes, a correlation, and a relative change."""
    draw = np.random.default_rng(0)
    exact = draw.normal(0, 2, (4000, 11))
    other = exact + draw.normal(0, 0.3, exact.shape)
    shares = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    tokens = (shares.cumsum(axis=1) > draw.random((len(exact), 1))).argmax(axis=1)
    nll = [np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(x)), tokens] for x in (exact, other + 5)]
    assert rise_of_perplexity(exact, other + 5) == pytest.approx(np.exp(nll[1].mean() - nll[0].mean()) - 1, rel=0.15)
    few, noise = draw.normal(size=(8, 300)), draw.normal(size=(8, 300))
    assert lost_correlation(few, 3 * few) == pytest.approx(0, abs=1e-12)
    assert 1e-4 < lost_correlation(few, few + 0.05 * noise) < lost_correlation(few, few + 0.2 * noise) < 0.1
    assert lost_correlation(few[:2], 1.1 * few[:2]) == pytest.approx(0.005)
    assert change(few, few * 1.01) == pytest.approx(0.01) and change(few * 0, few * 0) == 0
    bounds = [effect_of(config()).bound for config in (gpt2_config, vit_config, bert_config)]
    assert bounds == [0.02, 0.02, 0.003]


def test_types_are_tried_on_what_the_model_is_given(tmp_path, monkeypatch):
    """Items of the job, from its first to its last; without a job texts, and without a tokenizer random tokens."""
    write_job(tmp_path)
    as_if(monkeypatch, bfloat16=1e-3, int8=0.5)
    seen = []
    monkeypatch.setattr(compute_room, "trial", lambda *given: seen.append(trial(*given)) or seen[-1])
    assert run(tmp_path, "parallel.compute=auto") == 0
    told = json.loads((tmp_path / "out.json").read_text())["compute"]
    assert told["tried_on"] == seen[0].what == f"{ITEMS} items of the job" and len(seen[0].inputs) == ITEMS
    tokenizer = Tokenizer(byte_tokenizer())
    for ids, mask, text in zip(seen[0].inputs, seen[0].masks, (tmp_path / "in.txt").read_text().split(), strict=False):
        np.testing.assert_array_equal(ids[mask], tokenizer.encode([text], 12)[0])
    model = astra_mpi.load(str(tmp_path / "model.h5"), comm=MPI.COMM_SELF, strategy="single", compute="auto")
    assert model.chosen_compute["tried_on"] == seen[1].what == f"{len(TEXTS)} sample texts"
    ids, mask = seen[1].inputs[0], seen[1].masks[0]
    np.testing.assert_array_equal(ids[mask], tokenizer.encode(TEXTS[:1], len(ids[mask]))[0])
    assert len(seen[1].inputs) == len(TEXTS) and mask.sum() == bert_config().max_positions


@pytest.mark.parametrize(
    "options, message",
    [
        (["--compute", "int4"], "compute 'int4' is unknown; use one of float32, bfloat16, int8, auto"),
        (["--compute", "int8", "--backend", "cuda"], "on a GPU set precision, such as float16"),
        (["--compute", "auto", "--backend", "reference"], "the reference computes in float32, so leave compute away"),
    ],
)
def test_what_does_not_go_together(tmp_path, capsys, options, message):
    write_model(tmp_path / "model.h5", model_file(vit_config()))
    for command in ("verify", "bench"):
        assert cli.main([command, str(tmp_path / "model.h5"), *options]) == 2
        assert message in capsys.readouterr().err


def run(folder, *overrides):
    return cli.main(["run", str(folder / "deck.toml"), *overrides])


def stopped_after_a_batch(monkeypatch, folder, *overrides):
    left = [1]

    def agreed(self, comm):
        left[0] -= 1
        return 15 if left[0] < 0 else 0

    with monkeypatch.context() as patched:
        patched.setattr(StopRequests, "agreed", agreed)
        assert run(folder, *overrides) == 143


def test_a_job_keeps_its_type(tmp_path, capsys, monkeypatch):
    write_job(tmp_path)
    stopped_after_a_batch(monkeypatch, tmp_path, "parallel.compute=bfloat16")
    assert describe_job(tmp_path / "out.h5.parts")["compute"] == "bfloat16"
    assert run(tmp_path) == 2
    assert "results with parallel.compute = 'bfloat16', now it is 'float32'" in capsys.readouterr().err
    assert run(tmp_path, "parallel.compute=bfloat16") == 0
    summary = json.loads((tmp_path / "out.json").read_text())
    assert summary["choices"]["compute"] == summary["deck"]["parallel"]["compute"] == "bfloat16"
    assert summary["compute"] is None
    with h5py.File(tmp_path / "out.h5") as file:
        assert json.loads(file.attrs["choices"])["compute"] == "bfloat16"


def test_a_job_keeps_what_auto_chose(tmp_path, monkeypatch):
    """And so does another shard of it. Nothing is measured again."""
    write_job(tmp_path)
    shard = ("parallel.compute=auto", "input.shard=0/2")
    as_if(monkeypatch, bfloat16=1e-3, int8=0.5)
    stopped_after_a_batch(monkeypatch, tmp_path, *shard)
    monkeypatch.setattr(compute_room, "choose_compute", None)
    assert run(tmp_path, *shard) == 0
    assert run(tmp_path, shard[0], "input.shard=1/2") == 0
    for i in range(2):
        summary = json.loads((tmp_path / f"out.{i}-of-2.json").read_text())
        assert summary["choices"]["compute"] == "bfloat16" and summary["deck"]["parallel"]["compute"] == "auto"
        assert (summary["compute"] is not None) == (i == 0)
    assert summary["deck"]["parallel"]["compute"] == "auto"


def test_results_of_before_are_of_float32(tmp_path, capsys):
    write_job(tmp_path)
    assert run(tmp_path) == 0
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        state = json.loads(file.attrs["state"])
        del state["parallel.compute"]
        file.attrs["state"] = json.dumps(state)
        file.attrs.pop("checksum", None)
    capsys.readouterr()
    assert run(tmp_path, "parallel.compute=int8") == 2
    assert "parallel.compute = 'float32', now it is 'int8'" in capsys.readouterr().err


def test_weights_as_they_are_kept():
    assert COMPUTES == OF_BACKENDS
    assert weight_bytes("float32", "float32") == 4 and weight_bytes("int8", "float32") == 1
    assert weight_bytes("float32", "bfloat16") == 2 and weight_bytes("float32", "int8") == 1
    assert weight_bytes("q4_1", "int8") == weight_bytes("q4_1", "float32") == 5 / 8
    speeds = assumed_speeds(50)
    assert stored(assumed(speeds, "float32"), "float32", "float32").weights == speeds.stream
    assert stored(assumed(speeds, "int8"), "int8", "q4_1").weights == pytest.approx(speeds.stream * 4 / (5 / 8))
    assert assumed(speeds, "bfloat16").gemm == 2 * speeds.gemm


@pytest.mark.parametrize("compute", COMPUTES)
def test_caches_are_as_narrow_as_predicted(compute):
    """48 tokens fill whole strips of a narrow cache."""
    file = model_file(gpt2_config(max_positions=60, d_model=64, n_heads=2, n_kv_heads=2))
    model = Model(file, MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF, compute=compute))
    if model.backend.choices.get("products") == "widened":
        pytest.skip("caches stay float32 here")
    model.use("single")
    model.generate(np.ones((1, 40), np.int64), max_new_tokens=9, decode="local")
    job = Job(shape_of(file.config), (40,), 1, kept_bytes(compute, file.config.d_head))
    predicted = decode_cost(job, Coding(), "single", "local", 9).cache_bytes
    assert list(predicted) == model.report["generation"]["cache_bytes"]


def test_faster_products_make_exchanges_dearer():
    """A faster core needs a faster link: every break-even moves up, and a token takes less."""
    plans, tokens = {}, {}
    for compute in COMPUTES:
        speeds = stored(assumed(assumed_speeds(50), compute), compute, "float32")
        setting = Setting(gpt2_config(max_positions=1024, d_model=768, n_heads=12, n_kv_heads=12, d_ff=3072), 512,
                          (speeds,) * 4, Network(1e8, 1e-3), weight_bytes=weight_bytes("float32", compute))  # fmt: skip
        plans[compute] = {row["strategy"]: row for row in plan(setting)["strategies"]}
        rows = {row["strategy"]: row for row in decode_plan(setting, 8)["strategies"]}
        tokens[compute] = rows["single"]["modes"]["local"]["per_token_s"]
    needed = [plans[compute]["sp"]["break_even_bps"]["port"] or np.inf for compute in COMPUTES]
    assert needed[0] < needed[1] < needed[2] or np.isinf(needed[1:]).all()
    assert plans["float32"]["single"]["latency_s"]["port"] > 1.5 * plans["bfloat16"]["single"]["latency_s"]["port"]
    assert tokens["float32"] > tokens["bfloat16"] > tokens["int8"]
    memory = [plans[compute]["single"]["memory_bytes"] for compute in COMPUTES]
    assert memory[0] > memory[1] > memory[2]


def test_plan_of_a_type(tmp_path, capsys):
    write_model(tmp_path / "model.h5", model_file(gpt2_config(), dtype="int8"))
    assert read_storage(str(tmp_path / "model.h5")) == "int8"
    command = ["plan", str(tmp_path / "model.h5"), "-n", "2", "--bandwidth", "1Mbps", "--json", "-"]
    assert cli.main([*command, "--compute", "bfloat16"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["compute"] == "bfloat16" and "2 times as fast as float32 (assumed" in told["speeds"]
    assert cli.main([*command, "--compute", "auto"]) == 2
    assert "plan takes one of float32, bfloat16, int8" in capsys.readouterr().err
    old = {"ranks": [{"speeds": dataclasses.asdict(assumed_speeds(50))}], "links": {"rtt_s": [[None]]}}
    old["links"]["bandwidth_bps"] = [[None]]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert cli.main([*command, "--profile", str(tmp_path / "old.json")]) == 0
    capsys.readouterr()
    assert cli.main([*command, "--profile", str(tmp_path / "old.json"), "--compute", "int8"]) == 2
    assert "has no speeds of int8" in capsys.readouterr().err


def test_backend_of_no_model_cannot_choose():
    with pytest.raises(InputError, match="'auto' needs a model"):
        get_backend("numpy", MPI.COMM_SELF, compute="auto")


def test_a_sweep_of_a_type(tmp_path):
    """It is asked of bench, and points in another type are other points."""
    write_model(tmp_path / "model.h5", model_file(gpt2_config()))
    keys = []
    for compute in ("float32", "bfloat16"):
        (tmp_path / "deck.toml").write_text(
            f'[model]\npath = "model.h5"\n[sweep]\nstrategies = ["sp"]\nranks = [2]\ncompute = "{compute}"\n'
            '[output]\npath = "out"\n'
        )
        deck = load_sweep(tmp_path / "deck.toml")
        (point,) = points(deck)
        settings = settings_of(deck, point, {})
        keys.append(key_of(settings))
        words = _options(deck, Task(point, Prepared(tmp_path / "model.h5"), settings, keys[-1]))
        assert words[words.index("--compute") + 1] == settings["compute"] == compute
    assert keys[0] != keys[1]
