"""Predictions: consistency of break-evens and cuts, byte formulas against real runs, and the command."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_mpi.cli import _parser
from astra_mpi.codec.config import CodecConfig
from astra_mpi.config import ModelConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.costs.cut import token_cost
from astra_mpi.costs.latency import ACCOUNTINGS, Network, Speeds, assumed_speeds, latency, transfer_s
from astra_mpi.costs.setting import Setting
from astra_mpi.costs.strategies import STRATEGIES, token_parallel
from astra_mpi.costs.wires import Coding, astra_wire, segment_wire
from astra_mpi.costs.work import Cost, Job, RankWork, Stage, Transfer, Work, shape_of
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import write_model
from astra_mpi.models import FAMILIES
from astra_mpi.partition import even, finish_together, weighted
from astra_mpi.planner.advice import advice
from astra_mpi.planner.inputs import make_setting, read_outline, read_profile
from astra_mpi.planner.measured import best_codec, measured
from astra_mpi.planner.plan import best_cut, compare_codecs, plan
from helpers.fakes import bert_config, llama_config, model_file, vit_config

MPIRUN = Path(sys.executable).parent / "mpirun"
ROUND = Speeds(gemm=1e9, attention=1e9, encode=1e9, table=1e9, elements=1e9, stream=1e9, block_s=0.0)
CODECS = (CodecConfig(), CodecConfig(kind="grouped", groups=1, codebook_size=1024), CodecConfig(site="kv", stages=2))

configs = st.builds(
    lambda heads, d_head, layers: ModelConfig(heads * d_head, heads, heads, layers, 4 * heads * d_head, "gelu", 1e-5),
    st.integers(1, 12), st.sampled_from([8, 64]), st.integers(1, 12),
)  # fmt: skip
speed_lists = st.lists(st.floats(0.1, 1).map(lambda x: assumed_speeds(50 * x)), min_size=1, max_size=6).map(tuple)
plans = st.builds(
    Setting,
    configs,
    st.integers(1, 2048),
    speed_lists,
    st.builds(Network, st.floats(1e5, 1e10), st.floats(0, 0.01)),
    st.integers(1, 4),
    st.builds(Coding, st.sampled_from(CODECS), remote=st.sampled_from(["table", "gemm"])),
)


def vit_base(ranks=4, bps=1e7, rtt_s=0.0, **changes):
    config = ModelConfig(768, 12, 12, 12, 3072, "gelu", 1e-12)
    return Setting(config, 1024, (assumed_speeds(100),) * ranks, Network(bps, rtt_s), **changes)


@settings(deadline=None, max_examples=30)
@given(plans)
def test_break_even_is_where_a_strategy_takes_as_long_as_one_rank(setting):
    answer = plan(setting)
    single_s = answer["single_s"]
    for row in answer["strategies"]:
        if "skipped" in row or row["strategy"] == "single":
            continue
        cost = STRATEGIES[row["strategy"]](setting.job(row["cut"]), setting.coding)

        def seconds(bps, kind, cost=cost):
            return latency(cost, setting.speeds, Network(bps, setting.network.rtt_s), kind).total

        for kind in ACCOUNTINGS:
            bps = row["break_even_bps"][kind]
            if setting.size == 1:
                assert bps is None
            elif bps is None:
                assert seconds(1e14, kind) >= single_s * (1 - 1e-6)
            elif bps == 0:
                assert seconds(1.0, kind) < single_s
            else:
                assert seconds(bps * 1.001, kind) <= single_s <= seconds(bps / 1.001, kind)


@settings(deadline=None, max_examples=30)
@given(plans, st.sampled_from(["sp", "astra", "segment_means:8"]))
def test_best_cut_is_no_worse_than_the_even_one(setting, strategy):
    cut = best_cut(setting, strategy)
    assert sum(cut) == setting.tokens and min(cut) >= 0
    best, plain = (
        latency(STRATEGIES[strategy](setting.job(counts), setting.coding), setting.speeds, setting.network).total
        for counts in (cut, setting.even)
    )
    assert best <= plain


@settings(deadline=None, max_examples=30)
@given(plans)
def test_latency_is_compute_plus_wait_and_falls_with_bandwidth(setting):
    faster = Network(2 * setting.network.bandwidth_bps, setting.network.rtt_s)
    job = setting.job(setting.even)
    for make in STRATEGIES.values():
        try:
            cost = make(job, setting.coding)
        except InputError:
            continue
        for kind in ACCOUNTINGS:
            slow, quick = (latency(cost, setting.speeds, at, kind) for at in (setting.network, faster))
            assert slow.total == pytest.approx(slow.compute + slow.wait)
            assert slow.wait >= -1e-12 * slow.total
            assert quick.total <= slow.total


def test_uneven_ranks_get_tokens_by_their_speed():
    setting = vit_base()
    setting = Setting(
        setting.config, 1024, tuple(assumed_speeds(100).times(x) for x in (1, 1, 0.5, 0.5)), setting.network
    )
    cut = best_cut(setting, "astra")
    assert cut[0] == pytest.approx(2 * cut[2], rel=0.05) and cut[0] + cut[2] == pytest.approx(512, abs=2)
    tensor = STRATEGIES["tp"](setting.job(best_cut(setting, "tp")), setting.coding)
    assert [work.gemm / tensor.work()[0].gemm for work in tensor.work()] == pytest.approx([1, 1, 0.5, 0.5], abs=0.05)
    assert best_cut(setting, "bp") == [256] * 4


def test_causal_models_are_cut_so_that_later_ranks_own_less():
    config = FAMILIES["gpt2"].PRESETS["gpt2"](4096)
    setting = Setting(config, 4096, (assumed_speeds(100),) * 4, Network(1e9, 0.0))
    counts = best_cut(setting, "astra")
    assert counts == sorted(counts, reverse=True) and counts[0] > 1.2 * counts[-1]
    together = finish_together(
        4096, [1.0] * 4, token_cost(shape_of(config), astra_wire(shape_of(config), setting.coding))
    )
    assert np.abs(np.array(counts) - together).max() < 0.03 * 4096
    assert "cut by --weights causal" in " ".join(advice(plan(setting)))


def test_exchange_hides_behind_local_work_and_only_the_excess_is_waited_for():
    """One block: 1 s to encode, 2 s of local work, 1 s after; an exchange of 8 Mbit per port."""
    second = Work(gemm=1e9)
    ranks = (RankWork(second, second * 2, second),) * 3
    stage = Stage(1, ranks, Transfer("gather", (500_000,) * 3, 4e6))
    cost = Cost("astra", False, (stage,))

    def total(bps, kind, rtt_s=0.0):
        return latency(cost, (ROUND,) * 3, Network(bps, rtt_s), kind).total

    assert total(4e6, "port") == pytest.approx(4)  # 2 s of exchange behind 2 s of work
    assert total(1e6, "port") == pytest.approx(1 + 8 + 1)
    assert total(1e6, "port", rtt_s=0.5) == pytest.approx(1 + 8 + 0.25 + 1)
    assert total(1e6, "contributed") == pytest.approx(1 + 4 + 1)
    assert total(4e6, "paper") == pytest.approx(4 + 1)  # after the work, not beside it


def test_transfers():
    network = Network(8e6, 0.0)  # a megabyte per second
    uneven = Transfer("gather", (3_000_000, 1_000_000), 0)
    assert transfer_s(uneven, network, "port") == pytest.approx(3)
    assert transfer_s(uneven, network, "contributed") == pytest.approx(3)
    assert transfer_s(Transfer("gather", (1_000_000,) * 4, 0), network, "port") == pytest.approx(3)
    ring = Transfer("reduce", (1_000_000,) * 4, 2e6)
    assert transfer_s(ring, network, "port") == pytest.approx(1.5)
    assert transfer_s(ring, Network(8e6, 0.01), "port") == pytest.approx(1.5 + 6 * 0.005)
    assert transfer_s(ring, network, "paper") == pytest.approx(0.25)
    assert transfer_s(Transfer("gather", (0, 0), 0), Network(8e6, 1.0), "port") == 0


def test_published_bytes_under_paper_accounting():
    """T/P tokens, 12 blocks: C b bits for ASTRA, 32 D for SP, twice that for TP, once for BP+AG; 10 Mbps."""
    setting = vit_base()
    waits = {row["strategy"]: row["wait_s"]["paper"] for row in plan(setting)["strategies"] if "wait_s" in row}
    assert waits["sp"] == pytest.approx(12 * 256 * 32 * 768 / 1e7)
    assert waits["tp"] == pytest.approx(2 * waits["sp"])
    assert waits["bp"] == pytest.approx(waits["sp"] / 12)
    assert waits["bp:sp"] == pytest.approx(2 * waits["bp"])
    assert waits["astra"] == pytest.approx(12 * 256 * 32 / 1e7)
    assert waits["segment_means:8"] == pytest.approx(waits["sp"] / 8)


@pytest.mark.parametrize("tokens, per_mean", [(10, 4), (3, 8), (16, 1)])
def test_segment_means_round_up_on_every_rank(tokens, per_mean):
    config = bert_config()
    job = Job(shape_of(config), tuple(map(int, even(tokens, 4))), 2)
    cost = token_parallel(job, segment_wire(job.shape, per_mean), "segment_means")
    means = [-(-n // per_mean) for n in job.counts]
    assert cost.contributed_bytes() == [config.n_layers * 2 * m * config.d_model * 4 for m in means]


@pytest.mark.mpi
@pytest.mark.parametrize("weights", [None, "uneven"])
@pytest.mark.parametrize("spec", list(STRATEGIES))
@pytest.mark.parametrize(
    "config, codec",
    [
        (bert_config(n_heads=4, n_kv_heads=4), CodecConfig(stages=3, codebook_size=9)),
        (bert_config(n_heads=4, n_kv_heads=4), CodecConfig(kind="grouped", groups=5, codebook_size=20, site="kv")),
        (vit_config(), CodecConfig(kind="grouped", groups=1, codebook_size=33)),
    ],
    ids=["residual", "kv", "vit"],
)
def test_bytes_are_those_of_real_strategies(comm, config, codec, spec, weights):
    weights = weights and [float(r + 1) for r in range(comm.size)]
    model = Model(model_file(config, codec), comm, get_backend("reference", comm), weights)
    batch, n_tokens = 3, 15
    counts = even(n_tokens, comm.size) if weights is None else weighted(n_tokens, weights)
    job = Job(shape_of(config), tuple(map(int, counts)), batch)
    if model.obstacle(spec):
        with pytest.raises(InputError):
            STRATEGIES[spec](job, Coding(codec))
        return
    model.use(spec)
    model(*random_batch(config, batch, n_tokens))
    cost = STRATEGIES[spec](job, Coding(codec))
    assert cost.contributed_bytes() == model.report["formula_bytes"] == model.report["contributed_bytes"]


@pytest.mark.parametrize(
    ("family", "site", "kept"), [("bert", "hidden", 2), ("vit", "normed", 0), ("gpt2", "normed", 0)]
)
def test_best_codec_is_the_most_accurate_within_the_budget(family, site, kept):
    """Of codes of the tokens themselves, and of sentences' predicted ones before them."""
    known = measured(family, 6).codecs
    assert [codec.mean_bits(6) for codec in known[:kept]] == [32, 16][:kept] and best_codec(1e9, known) == known[0]
    known = known[kept:]
    for budget, codec in (
        (1e9, CodecConfig(stages=8)),
        (64, CodecConfig(stages=8)),
        (63, CodecConfig(stages=4)),
        (31, CodecConfig(stages=2)),
        (15, CodecConfig(kind="grouped", groups=1, codebook_size=1024)),
        (8, CodecConfig(stages=1)),
    ):
        assert best_codec(budget, known) == replace(codec, site=site)
    assert best_codec(7, known) is None


def test_codecs_compared():
    rows = compare_codecs(vit_base(), 32)
    known = measured("", 12).codecs
    assert [row["accuracy_rank"] for row in rows] == list(range(len(known)))
    assert [row["fits"] for row in rows] == [False, True, False, True, True, True, True]
    assert [row["bits_per_token_per_block"] for row in rows if row["best"]] == [pytest.approx(8 * 26 / 12)]
    assert [row["measured"] is None for row in rows] == [*[False] * 6, True]
    own = compare_codecs(vit_base(coding=Coding(CodecConfig(stages=3))), None)
    assert own[-1]["used"] and own[-1]["accuracy_rank"] is None and len(own) == len(known) + 1


@pytest.mark.parametrize("n_layers", [2, 12, 30, 61])
def test_codes_of_a_language_model_are_those_of_smollm2_at_any_depth(n_layers):
    about = measured("mistral", n_layers)  # a decoder that nobody has measured
    bits = [codec.mean_bits(n_layers) for codec in about.codecs if codec.predicts]
    assert about.on == "SmolLM2-135M" and bits == sorted(bits, reverse=True)
    predicted = [codec for codec in about.codecs if codec.predicts]
    for codec, share in zip(predicted, (494.9, 247.5, 122.7, 61.3, 32, 9.9), strict=True):
        codec.check_blocks(n_layers, "codec")
        if n_layers >= 12:
            assert codec.mean_bits(n_layers) == pytest.approx(share, rel=0.1)
    at_4 = [figure.by_ranks[4] for figure in about.figures]
    assert at_4 == sorted(at_4)  # most accurate first
    for figure in about.figures:
        assert [figure.by_ranks[n] for n in sorted(figure.by_ranks)] == sorted(figure.by_ranks.values())
        assert about.like(replace(figure.codec, encoder="exact", sinks=2), n_layers) is figure


def test_figures_are_told_of_codes_like_these():
    about = measured("llama", 30)
    alike = CodecConfig(site="normed", stages=7, predict="linear", sinks=2)
    by_bits = {round(figure.codec.mean_bits(30)): figure for figure in about.figures}
    assert about.told(about.like(alike, 30), 16) == about.told(by_bits[61], 8)
    assert about.like(replace(alike, stages=18), 30) is by_bits[123]
    assert about.like(replace(alike, kind="scalar", vector_bits=2000), 30) is None
    assert about.like(CodecConfig(site="hidden"), 30) is None and about.told(None, 4) is None


def test_single_is_on_the_fastest_rank():
    setting = Setting(vit_config(), 15, (assumed_speeds(10), assumed_speeds(20)), Network(1e9, 0))
    assert plan(setting)["single_rank"] == 1
    alone = Setting(vit_config(), 15, (assumed_speeds(20),), Network(1e9, 0))
    assert plan(setting)["single_s"] == pytest.approx(plan(alone)["single_s"])


def test_strategies_that_these_ranks_cannot_use_are_skipped_with_a_reason():
    rows = {
        row["strategy"]: row for row in plan(Setting(vit_config(), 15, (ROUND,) * 5, Network(1e9, 0)))["strategies"]
    }
    assert "cannot be cut into 5 equal parts" in rows["bp"]["skipped"] and "skipped" in rows["bp:sp"]
    assert rows["astra"]["latency_s"]["port"] > 0


@pytest.mark.parametrize("speeds", [(ROUND,) * 3, (ROUND, ROUND, ROUND.times(0.5))])
def test_what_a_family_cannot_use_is_skipped_and_the_rest_is_planned(speeds):
    """Of equally fast ranks and of uneven ones, whose cuts are made from the costs."""
    answer = plan(Setting(llama_config(), 30, speeds, Network(1e9, 0)))
    rows = {row["strategy"]: row for row in answer["strategies"]}
    assert list(rows) == list(STRATEGIES)
    assert {name for name, row in rows.items() if "skipped" in row} == {"bp", "bp:sp", "segment_means:8", "astra:late"}
    assert "no position for rotary keys and windows" in rows["segment_means:8"]["skipped"]
    assert advice({**answer, "size": 3})


@pytest.mark.parametrize(("bps", "bound"), [(1e6, "port"), (1e9, "rank")])
def test_ranks_of_a_causal_model_work_ahead(bps, bound):
    """One message of 80 kB after another, or one block of the slower rank after another."""
    ranks = (RankWork(during=Work(gemm=1e6)), RankWork(during=Work(gemm=3e6), after=Work(gemm=1e6)))
    transfer = Transfer("gather", (80000, 0), 0.0, forward=True)
    cost = Cost("sp", True, (Stage(5, ranks, transfer),))
    both = Cost("sp", True, (Stage(5, ranks, replace(transfer, forward=False)),))
    network = Network(bps, 0.002)
    period_s = 0.64 if bound == "port" else 0.004
    first_s = latency(replace(cost, stages=(replace(cost.stages[0], repeats=1),)), (ROUND, ROUND), network).total
    assert first_s == pytest.approx(max(8 * 80000 / bps + 0.001, 0.003) + 0.001)
    assert latency(cost, (ROUND, ROUND), network).total == pytest.approx(first_s + 4 * period_s)
    assert latency(both, (ROUND, ROUND), network).total == pytest.approx(5 * first_s)
    for at in (cost, both):
        assert latency(at, (ROUND, ROUND), network, "paper").total == pytest.approx(5 * 0.004)


def test_families_shapes():
    """The counts come from the weights, so a class token and an MLP of any width are in them."""
    shape = shape_of(vit_config())
    assert (shape.mlp, shape.n_class, shape.causal) == (2 * 24 * 40, 1, False)
    assert shape_of(bert_config()).n_class == 0


def test_later_tokens_are_not_counted_where_attention_is_causal():
    shape = replace(shape_of(bert_config()), causal=True)
    first, last = STRATEGIES["sp"](Job(shape, (8, 8)), Coding()).work()
    assert last.attention - first.attention == 2 * 2 * 24 * 8 * 8  # 2 blocks, 2 D per pair of far key and query
    assert first.attention == 2 * 2 * 24 * 8 * 8 / 2


# ---- the command


def astra(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "astra_mpi", "plan", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def vit(tmp_path):
    write_model(tmp_path / "vit.h5", model_file(vit_config(), CodecConfig(stages=2, codebook_size=16)))
    return tmp_path / "vit.h5"


def doctor_json(path, n=3, **changes):
    speeds = dict(gemm=5e10, attention=3e10, encode=4e10, table=5e9, elements=3e9, stream=2e9, block_s=1e-4)
    link = [[None if i == j else 1e7 + i for j in range(n)] for i in range(n)]
    rtt = [[None if i == j else 2e-3 for j in range(n)] for i in range(n)]
    report = {"ranks": [{"speeds": speeds}] * n, "links": {"rtt_s": rtt, "bandwidth_bps": link}}
    path.write_text(json.dumps(report | changes))
    return path


def test_command(vit, tmp_path):
    out, _ = astra(vit, "-n", 4, "--bandwidth", "10Mbps", "--rtt", "2ms", "--json", tmp_path / "p.json")
    answer = json.loads((tmp_path / "p.json").read_text())
    assert answer["network"] == {"bandwidth_bps": 1e7, "rtt_s": 2e-3}
    assert [row["strategy"] for row in answer["strategies"]] == list(STRATEGIES)
    assert answer["codec"]["stages"] == 2 and answer["speeds"].startswith("assumed: 50 GFLOP/s")
    assert answer["verdict"][0].startswith("Stay on one rank")  # 15 tokens of width 24
    assert all(name in out for name in STRATEGIES)
    assert json.loads(astra(vit, "-n", 1, "--json", "-")[0])["ranks"] == 1


def test_a_plan_worth_several_ranks(vit):
    out, _ = astra(
        vit, "-n", 4, "--bandwidth", "1Gbps", "--rtt", "0", "--speed", 0.001, "--speeds-of-ranks", "1,1,1,.5"
    )
    assert "Use " in out and "cut by --weights" in out and "It beats one rank above" in out


def test_profile_of_doctor(vit, tmp_path):
    profile = doctor_json(tmp_path / "d.json")
    answer = json.loads(astra(vit, "--profile", profile, "--json", "-")[0])
    assert answer["ranks"] == 3 and answer["speeds"] == "measured by doctor"
    assert answer["network"] == {"bandwidth_bps": 1e7, "rtt_s": 2e-3}
    answer = json.loads(astra(vit, "--profile", profile, "-n", 5, "--bandwidth", "1Gbps", "--json", "-")[0])
    assert answer["ranks"] == 5 and answer["network"] == {"bandwidth_bps": 1e9, "rtt_s": 2e-3}


def test_plan_reads_what_doctor_writes(vit, tmp_path):
    doctor = [str(MPIRUN), "-n", "2", sys.executable, "-m", "astra_mpi", "doctor", "--links-s", "0.5"]
    done = subprocess.run([*doctor, "--json", tmp_path / "d.json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answer = json.loads(astra(vit, "--profile", tmp_path / "d.json", "--json", "-")[0])
    profile = read_profile(str(tmp_path / "d.json"))
    assert answer["ranks"] == len(profile.speeds) == 2
    assert answer["network"]["bandwidth_bps"] == pytest.approx(np.nanmin(profile.bandwidth_bps))


@pytest.mark.parametrize(
    "options, said",
    [
        (["--bandwidth", "10Mbps"], "-n is missing"),
        (["-n", 4], "--bandwidth is missing"),
        (["-n", 4, "--bandwidth", "0Mbps"], "bandwidth '0Mbps' is not above zero"),
        (["-n", 4, "--bandwidth=-5Mbps"], "bandwidth '-5Mbps' is not above zero"),
        (["-n", 4, "--bandwidth", "10knots"], "unknown unit 'knots'"),
        (["-n", 4, "--bandwidth", "10Mbps", "--rtt", "2"], "duration '2' has no unit"),
        (["-n", 0, "--bandwidth", "10Mbps"], "-n 0: at least 1"),
        (["-n", 4, "--bandwidth", "10Mbps", "--tokens", 0], "--tokens 0: at least 1"),
        (["-n", 4, "--bandwidth", "10Mbps", "--batch", -1], "--batch -1: at least 1"),
        (["-n", 4, "--bandwidth", "10Mbps", "--budget", 5], "--budget 5: the smallest codec that was measured"),
        (["-n", 4, "--bandwidth", "10Mbps", "--speed", 0], "--speed 0.0 is not between 0"),
        (["-n", 4, "--bandwidth", "10Mbps", "--speeds-of-ranks", "1,2"], "has 2 numbers for 4 ranks"),
        (["-n", 2, "--bandwidth", "10Mbps", "--speeds-of-ranks", "1,0"], "--speeds-of-ranks: numbers above zero"),
        (["-n", 4, "--bandwidth", "10Mbps", "--distinct-keys", 9], "--distinct-keys is for codecs with one code"),
        (["-n", 4, "--bandwidth", "10Mbps", "--profile", "none.json"], "none.json: the profile cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(vit, options, said):
    """In one process for all, because each start takes half a second."""
    args = _parser().parse_args(["plan", str(vit), *map(str, options)])
    with pytest.raises(InputError) as caught:
        args.run(args)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("no json", "is no profile of doctor"),
        ("[]", "is no profile of doctor"),
        ('{"ranks": [{}], "links": {}}', "KeyError: 'speeds'"),
        ('{"ranks": [{"speeds": {"gemm": 1}}], "links": {}}', "is no profile of doctor"),
        ('{"ranks": [], "links": {"rtt_s": [], "bandwidth_bps": []}}', "missing or not above zero"),
    ],
)
def test_bad_profiles(tmp_path, text, said):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_profile(str(tmp_path / "d.json"))


def test_profile_with_a_dead_link(tmp_path):
    links = {"rtt_s": [[None, 1e-3], [1e-3, None]], "bandwidth_bps": [[None, 0.0], [1e7, None]]}
    with pytest.raises(InputError, match="not above zero"):
        read_profile(str(doctor_json(tmp_path / "d.json", 2, links=links)))


def test_outline_needs_no_codebooks_in_memory(vit, tmp_path):
    config, coding = read_outline(str(vit))
    assert config == vit_config() and coding.codec.stages == 2 and coding.subspaces == (None, None)
    subspace = model_file(vit_config(), CodecConfig(stages=2, codebook_size=16, encoder="subspace"))
    write_model(tmp_path / "s.h5", subspace)
    assert read_outline(str(tmp_path / "s.h5"))[1].subspaces == (15, 15)
    setting, _ = make_setting(config, None, ranks=2, bandwidth="1Mbps")
    assert setting.coding.codec == CodecConfig("normed") and setting.tokens == 15


def test_plot_needs_matplotlib_or_writes_a_picture(vit, tmp_path):
    options = [vit, "-n", 4, "--bandwidth", "10Mbps", "--plot", tmp_path / "p.png"]
    if find_spec("matplotlib") is None:
        assert "pip install 'astra-mpi[plot]'" in astra(*options, code=2)[1]
    else:
        astra(*options)
        assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_plan_starts_no_mpi_and_takes_about_a_second(vit):
    code = (
        "import sys\nfrom astra_mpi.cli import main\n"
        f"assert main(['plan', {str(vit)!r}, '-n', '4', '--bandwidth', '10Mbps', '--json', '-']) == 0\n"
        "print(sorted({'mpi4py', 'numba', 'mpi4py.MPI'} & set(sys.modules)))"
    )
    start_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert time.monotonic() - start_s < 5  # on a machine that is busy with other work
