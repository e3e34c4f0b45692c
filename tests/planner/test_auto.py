"""strategy = "auto": what it chooses, that all ranks choose the same, and that a job keeps it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

import astra_mpi
from astra_mpi.cli import _parse
from astra_mpi.costs.latency import Network, assumed_speeds
from astra_mpi.costs.setting import Setting
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import write_model
from astra_mpi.job import runner
from astra_mpi.job import strategy as job_strategy
from astra_mpi.job.merge import merge
from astra_mpi.planner import auto
from astra_mpi.planner import probes as short_probes
from astra_mpi.planner.auto import EXACT, Workload, decide, fastest_exact, hint, predictions, reason, usual
from astra_mpi.planner.plan import plan
from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.ranks.signals import Interrupted
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file
from helpers.job import N_NEW, PROMPTS
from helpers.tokenizers import letter_tokenizer

mpi = pytest.mark.mpi
#: slow ranks on a fast network, and the other way round; the virtual clock makes the second sure
FAST = dict(network="100Gbps,rtt=0", clock="virtual", speed=1e4)
SLOW = dict(network="1Mbps,rtt=2ms")
CONFIG = llama_config(tied=False, max_positions=64, d_model=48)


@pytest.fixture
def folder(comm, tmp_path):
    """Rank 0's temporary folder: plain.h5, coded.h5, prompts and a deck for them that names no strategy."""
    shared = Path(broadcast_text(comm, str(tmp_path)))
    if comm.rank == 0:
        coded = replace(
            model_file(CONFIG), tokenizer=letter_tokenizer(), preprocess={"max_tokens": 12, "end_tokens": []}
        )
        write_model(shared / "coded.h5", coded)
        write_model(shared / "plain.h5", replace(coded, codec=None))
        (shared / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in PROMPTS))
        (shared / "deck.toml").write_text(
            '[model]\npath = "plain.h5"\n[input]\npath = "prompts.jsonl"\nkind = "text"\n'
            f'[task]\nname = "generate"\nmax_new_tokens = {N_NEW}\n[run]\nbatch = 3\n[output]\npath = "out.h5"\n'
        )
    comm.Barrier()
    return shared


def run(comm, folder, *overrides):
    comm.Barrier()
    args = _parse(["run", str(folder / "deck.toml"), *overrides])
    code = args.run(args, comm)
    comm.Barrier()
    return code


def conditions(network):
    return [f"parallel.{name}={value}" for name, value in network.items()]


@mpi
@pytest.mark.parametrize("network", [FAST, SLOW, {}])
def test_all_ranks_choose_the_same_exact_strategy_and_record_it(comm, folder, network):
    model = astra_mpi.load(str(folder / "plain.h5"), comm=comm, tokens=60, **network)
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (1, 60))
    answer = model(ids)
    chosen = comm.allgather(model.chosen)
    assert all(choice == chosen[0] for choice in chosen)
    choice, report = chosen[0], model.report
    assert report["auto"] == choice and report["choices"]["strategy"] == report["strategy"] == choice["strategy"]
    if comm.size == 1:
        assert choice == {"strategy": "single", "by": "one rank"}
    else:
        assert choice["strategy"] in EXACT and choice["by"] == "prediction"
        assert choice["network"]["from"] == network.get("network", "probe")
        assert len(choice["gflops"]) == comm.size and min(choice["gflops"]) > 0
        assert "chose " in reason(choice) and "ms to find out" in reason(choice)
    if network is SLOW or comm.size == 1:
        assert choice["strategy"] == "single"
    elif network is FAST:
        assert choice["strategy"] != "single"
    model.use("single")
    np.testing.assert_allclose(answer, model(ids), atol=1e-4)
    assert model.report["auto"] is None and "strategy" not in model.report["choices"]


@mpi
def test_codebooks_are_used_whatever_the_network_and_what_is_faster_is_named(comm, folder):
    model = astra_mpi.load(str(folder / "coded.h5"), comm=comm, **SLOW)
    assert str(model.strategy.spec) == model.chosen["strategy"] == "astra"
    inputs = astra_mpi.load(str(folder / "coded.h5"), comm=comm, strategy="auto:inputs", **SLOW)
    assert str(inputs.strategy.spec) == "astra:inputs"
    if comm.size > 1:
        assert model.chosen == {"strategy": "astra", "by": "codebooks"}  # nothing was measured for it
        decide(model, usual(model.config))
        assert model.chosen["by"] == "codebooks" and model.chosen["faster"]["strategy"] == "single"
        said = hint(model.chosen, "--strategy ")
        assert said.startswith("astra-mpi: single is predicted to be ") and said.endswith(": --strategy single")


@mpi
def test_bad_hints_and_options_of_a_strategy_that_nobody_named(comm, folder):
    with pytest.raises(InputError, match="tokens 0: at least 1"):
        astra_mpi.load(str(folder / "plain.h5"), comm=comm, tokens=0)
    with pytest.raises(InputError, match=r"parallel\.wire without a strategy that takes it"):
        run(comm, folder, "parallel.wire=int8")


def setting(mbps, ranks=4, speed=20.0, tokens=1024, rtt_s=1e-3, config=None):
    config = config or gpt2_config(d_model=768, n_heads=12, n_kv_heads=12, n_layers=12, d_ff=3072, max_positions=4096)
    return Setting(config, tokens, (assumed_speeds(speed),) * ranks, Network(mbps * 1e6, rtt_s))


def test_choice_goes_with_the_network_as_plan_predicts():
    found = {}
    for mbps in (1, 10, 100, 1000, 10000):
        at = setting(mbps)
        times = predictions(at, Workload(1024), EXACT, even=True)
        found[mbps] = fastest_exact(times)
        rows = {row["strategy"]: row for row in plan(at)["strategies"]}
        assert times["single"] == pytest.approx(rows["single"]["latency_s"]["port"])
        assert times["tp"] == pytest.approx(rows["tp"]["latency_s"]["port"])
        assert times["sp"] >= rows["sp"]["latency_s"]["port"] * (1 - 1e-9)  # planned with its best cut
    assert found[1] == found[10] == "single" and found[1000] == "sp:kv" and found[10000] != "single"


def test_new_tokens_count_and_only_what_generates_is_chosen():
    at = setting(1000)
    short = predictions(at, Workload(1024, new_tokens=1, decode="local"), EXACT, even=True)
    long = predictions(at, Workload(1024, new_tokens=500, decode="local"), EXACT, even=True)
    assert "tp" not in short and set(short) == {"single", "sp", "sp:kv"}
    each = [(long[name] - short[name]) / 499 for name in long]
    assert max(each) < 1.2 * min(each)  # one rank goes on, whatever the prompt's strategy
    slow = predictions(setting(1), Workload(64, new_tokens=50, decode="merged"), EXACT, even=True)
    assert fastest_exact(slow) == "single"


def test_logits_of_every_token_are_shared_only_where_tokens_are():
    at = setting(
        10000, config=gpt2_config(vocab_size=500000, d_model=768, n_heads=12, n_kv_heads=12, max_positions=4096)
    )
    plain, scored = (predictions(at, Workload(1024, scored=s), EXACT, even=True) for s in (False, True))
    added = {name: scored[name] - plain[name] for name in EXACT}
    assert added["single"] == pytest.approx(added["tp"]) and added["sp"] == pytest.approx(added["single"] / 4)


def test_a_gain_too_small_for_other_machines_is_left():
    assert fastest_exact({"single": 1.0, "sp": 0.97}) == "single"
    assert fastest_exact({"single": 1.0, "sp": 0.9, "tp": 0.8, "sp:kv:int8": 0.1}) == "tp"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sp:kv:int8", "rounds what is sent to 8 bits"),
        ("sp:float16", "to 16 bits"),
        ("astra", "approximate"),
        ("tp", "exact"),
    ],
)
def test_the_line_names_what_is_faster_and_what_it_costs(name, words):
    said = hint({"strategy": "single", "faster": {"strategy": name, "times": 3.14}}, "--strategy ")
    assert f"{name} is predicted to be 3.1 times as fast as single here; it " in said
    assert words in said and said.endswith(f": --strategy {name}")
    assert hint({"strategy": "single"}, "") == hint(None, "") == ""


@pytest.mark.parametrize("mbps", [1, 10, 100, 10000])
@pytest.mark.parametrize("rtt_s", [1e-4, 2e-2])
def test_link_probe_finds_the_link_in_few_messages(monkeypatch, mbps, rtt_s):
    spent = []

    def lap(comm, n_bytes, nap_s=0.0):
        spent.append(rtt_s / 2 + 8 * 3 * n_bytes / (1e6 * mbps))
        return spent[-1]

    monkeypatch.setattr(short_probes, "_lap", lap)
    found = short_probes.measure_link(SimpleNamespace(Get_size=lambda: 4))
    assert found.bandwidth_bps == pytest.approx(1e6 * mbps, rel=0.1) and found.rtt_s == pytest.approx(
        rtt_s, abs=50 / 1e6 / mbps
    )
    assert sum(spent) < 0.35  # one message of 8 KiB to each of three others takes 197 ms at 1 Mbit/s


@mpi
def test_link_probe_on_real_ranks(comm):
    if comm.size == 1:
        pytest.skip("one rank has no link")
    found = comm.allgather(short_probes.measure_link(comm))
    assert all(link == found[0] for link in found)
    assert 1e6 < found[0].bandwidth_bps < 1e14 and 0 < found[0].rtt_s < 1


@mpi
def test_a_job_keeps_its_choice_when_it_goes_on(comm, folder, monkeypatch):
    """Stopped after a batch, and not asked again; nothing but the choice could tell it apart."""
    calls = []
    monkeypatch.setattr(
        auto, "_choice", lambda *_: calls.append(1) or {"strategy": "sp:kv", "by": "prediction", "predicted_s": {}}
    )
    stop_after(monkeypatch, 1)
    with pytest.raises(Interrupted):
        run(comm, folder)
    stop_after(monkeypatch, None)
    monkeypatch.setattr(job_strategy, "decide", None)
    assert run(comm, folder) == 0
    summary = json.loads((folder / "out.json").read_text())
    assert calls == ([1] if comm.size > 1 and comm.rank == 0 else [])
    wanted = "sp:kv" if comm.size > 1 else "single"
    assert summary["strategy"] == summary["choices"]["strategy"] == summary["auto"]["strategy"] == wanted
    assert summary["deck"]["parallel"]["strategy"] == "auto"
    with h5py.File(folder / "out.h5", locking=False) as file:
        tokens = file["outputs/tokens"][()]
    run(comm, folder, "run.resume=false", "parallel.strategy=single", "output.path=" + str(folder / "one.h5"))
    with h5py.File(folder / "one.h5", locking=False) as file:
        np.testing.assert_array_equal(file["outputs/tokens"][()], tokens)


def stop_after(monkeypatch, n_batches):
    """Every rank stops, as after a signal, once so many batches are done."""
    left = [n_batches]

    def agreed(self, comm):
        if left[0] == 0:
            return 15
        left[0] = None if left[0] is None else left[0] - 1
        return 0

    monkeypatch.setattr(runner.StopRequests, "agreed", agreed)


@mpi
@pytest.mark.parametrize("finished", [False, True])
def test_another_shard_takes_the_recorded_choice(comm, folder, monkeypatch, finished):
    monkeypatch.setattr(auto, "_choice", lambda *_: {"strategy": "sp", "by": "prediction", "predicted_s": {}})
    overrides = ["run.batch=2"]
    if not finished:
        stop_after(monkeypatch, 1)
        with pytest.raises(Interrupted):
            run(comm, folder, "--shard", "1/2", *overrides)
        stop_after(monkeypatch, None)
    else:
        run(comm, folder, "--shard", "1/2", *overrides)
    with monkeypatch.context() as inner:
        inner.setattr(job_strategy, "decide", None)
        run(comm, folder, "--shard", "0/2", *overrides)
    summary = json.loads((folder / "out.0-of-2.json").read_text())
    assert summary["strategy"] == ("sp" if comm.size > 1 else "single")
    asked = []
    real = job_strategy.decide
    monkeypatch.setattr(job_strategy, "decide", lambda *a, **k: asked.append(1) or real(*a, **k))
    run(comm, folder, "--shard", "0/2", *overrides, "run.seed=9", "run.resume=false")  # another job
    assert asked == [1]


@mpi
def test_shards_that_chose_differently_are_merged(comm, folder, monkeypatch):
    if comm.size == 1:
        pytest.skip("one rank has one choice")
    for i, strategy in enumerate(("sp", "single")):
        monkeypatch.setattr(
            auto, "_choice", lambda *_, s=strategy: {"strategy": s, "by": "prediction", "predicted_s": {}}
        )
        monkeypatch.setattr(job_strategy, "_of_another_shard", lambda *_: None)
        run(comm, folder, "--shard", f"{i}/2")
    if comm.rank == 0:
        summary = merge([folder / f"out.{i}-of-2.h5" for i in range(2)], folder / "merged.h5")
        assert summary["strategy"] is None and summary["auto"] is None
        assert [choices["strategy"] for choices in summary["choices"]["by_file"]] == ["sp", "single"]
        assert summary["items"] == len(PROMPTS)
    comm.Barrier()


@mpi
@pytest.mark.parametrize("name", ["plain", "coded"])
def test_a_job_with_codebooks_is_one_that_names_astra(comm, folder, capsys, name):
    """Unfinished jobs of versions whose default was astra go on; results do not say that something was measured."""
    run(comm, folder, f"model.path={folder / name}.h5", *conditions(SLOW))
    with h5py.File(folder / "out.h5", locking=False) as file:
        state, summary = json.loads(file.attrs["state"]), json.loads(file.attrs["summary"])
    assert state["parallel.strategy"] == {"plain": "auto", "coded": "astra"}[name]
    assert summary["strategy"] == {"plain": "single", "coded": "astra"}[name]
    if comm.size > 1 and comm.rank == 0:
        said = capsys.readouterr().err
        assert said.count("is predicted to be") == (name == "coded")
        assert name == "plain" or "parallel.strategy=single" in said


@mpi
@pytest.mark.parametrize("task", ["embed", "perplexity"])
def test_single_in_a_job_of_several_ranks(comm, folder, task):
    config = bert_config() if task == "embed" else CONFIG
    if comm.rank == 0:
        file = replace(model_file(config), codec=None, tokenizer=letter_tokenizer(begin=False))
        write_model(folder / "m.h5", replace(file, preprocess={"max_tokens": 12}))
        (folder / "in.txt").write_text("\n".join(PROMPTS))
    path = "prompts.jsonl" if task == "embed" else "in.txt"
    given = [f"model.path={folder}/m.h5", f"input.path={folder}/{path}", f"task.name={task}", "input.max_tokens=12"]
    run(comm, folder, *given, *conditions(SLOW))
    summary = json.loads((folder / "out.json").read_text())
    assert summary["strategy"] == "single" and sum(summary["contributed_bytes"]) == 0
    assert summary["auto"]["by"] == ("prediction" if comm.size > 1 else "one rank")


@mpi
@pytest.mark.parametrize("strategy", [(), ("--strategy", "auto"), ("--strategy", "sp:kv:int8")])
def test_generate_says_what_it_chose(comm, folder, capsys, strategy):
    command = ["generate", str(folder / "plain.h5"), "a cab", "--max-new-tokens", "4", "--network", SLOW["network"]]
    args = _parse([*command, *strategy, "--json", str(folder / "g.json")])
    assert args.run(args, comm) == 0
    comm.Barrier()
    report = json.loads((folder / "g.json").read_text())["report"]
    said = capsys.readouterr().err if comm.rank == 0 else ""
    if strategy[1:] == ("sp:kv:int8",):
        assert report["strategy"] == "sp:kv:int8" and report["auto"] is None and "chose" not in said
    else:
        assert report["strategy"] == report["choices"]["strategy"] == "single"
        assert comm.size == 1 or comm.rank or "chose single (by prediction): single " in said
        assert comm.size == 1 or report["auto"]["new_tokens"] == 4
