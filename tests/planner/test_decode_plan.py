"""Predicted cost of decoding: caches and bytes against real runs, crossovers, and the command."""

import json
from dataclasses import replace

import numpy as np
import pytest

from astra_mpi.cli import _parser
from astra_mpi.codec.config import CodecConfig
from astra_mpi.costs.decode import MODES, decode_cost
from astra_mpi.costs.latency import Network, assumed_speeds
from astra_mpi.costs.setting import Setting, compute_seconds, wait_seconds
from astra_mpi.costs.strategies import STRATEGIES
from astra_mpi.costs.wires import Coding
from astra_mpi.costs.work import Job, shape_of
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import write_model
from astra_mpi.models.gpt2 import GPT2
from astra_mpi.models.llama import Llama
from astra_mpi.network.spec import parse_network
from astra_mpi.planner.decode import crossover_bps, decode_advice, decode_plan, steps
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file

N_NEW = 6
CODECS = {
    "hidden": CodecConfig(stages=3, codebook_size=16),
    "normed": CodecConfig(site="normed", kind="grouped", groups=4, codebook_size=300),
    "kv": CodecConfig(site="kv", stages=2, codebook_size=16),
    "one": CodecConfig(kind="grouped", codebook_size=16),
}


@pytest.mark.mpi
@pytest.mark.parametrize("remote", ["table", "gemm"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strategy", ["single", "sp:kv", "segment_means:3", "hidden", "normed", "kv", "one"])
@pytest.mark.parametrize("make", [gpt2_config, llama_config])
def test_caches_and_bytes_are_those_of_real_runs(comm, make, strategy, mode, remote):
    codec, name = CODECS.get(strategy), "astra" if strategy in CODECS else strategy
    file = model_file(make(), codec)
    model = Model(file, comm, get_backend("reference", comm))
    coded = strategy in CODECS and mode == "local"
    if (name == "single" and mode == "merged") or (remote == "gemm" and not coded) or model.obstacle(name):
        pytest.skip("cannot be used")
    model.use(name, counted_keys=False, remote=remote)
    n_tokens, batch = 2 * comm.size + 3, 5
    ids = np.random.default_rng(0).integers(0, 53, (batch, n_tokens))
    model.generate(ids, max_new_tokens=N_NEW, decode=mode)
    made = model.report["generation"]
    counts = model.layout(np.full(batch, n_tokens), spread=True).counts[0]
    job = Job(shape_of(file.config), tuple(int(n) for n in counts), batch)
    coding = Coding(codec or CodecConfig(), remote=remote)
    step = decode_cost(job, coding, name, mode, N_NEW)
    if strategy == "one" and make is gpt2_config and remote == "table":  # equal codes are counted
        assert all(a >= b for a, b in zip(step.cache_bytes, made["cache_bytes"], strict=True))
    elif name == "single":
        assert max(step.cache_bytes) == max(made["cache_bytes"])
    else:
        assert list(step.cache_bytes) == made["cache_bytes"]
    sent = [(N_NEW - 1) * sum(n * t.contributed[0] for n, t in step.transfers[:1])] * comm.size
    assert made["decode_bytes"] == sent
    plan = decode_plan(
        Setting(file.config, n_tokens, (assumed_speeds(1),) * comm.size, Network(1e7, 1e-3), batch), N_NEW
    )
    assert plan["full_cache_bytes"] == made["full_cache_bytes"]


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", ["single", "sp", "astra"])
def test_auto_is_what_is_predicted_to_be_faster(comm, strategy):
    model = Model(model_file(gpt2_config(), CODECS["normed"]), comm, get_backend("reference", comm))
    ids = np.random.default_rng(0).integers(0, 53, (1, 30))
    worth = comm.size > 1 and strategy != "single"
    for network, mode in (("real", "local"), ("1Mbps", "local"), ("100000Gbps", "merged" if worth else "local")):
        model.exchange.connect(parse_network(network))
        model.use(strategy)
        model.generate(ids, max_new_tokens=2)
        assert model.report["choices"]["decode"] == mode


def setting(tokens=1024, ranks=4, mbps=100, rtt_s=1e-3, family="gpt2", **changes):
    config = {"gpt2": GPT2.PRESETS["gpt2"], "llama": Llama.PRESETS["llama-3.2-1b"]}[family](tokens)
    at = Setting(config, tokens, (assumed_speeds(50),) * ranks, Network(mbps * 1e6, rtt_s))
    return replace(at, **changes)


def test_one_token_of_gpt2_by_hand():
    """12 blocks of 12 D^2 weights and the head are met once; keys and values of all tokens are read."""
    at = setting()
    work = steps(at, "single", 1, at.even)["local"].ranks[0]
    d = 768
    assert work.weights == 12 * 12 * d * d + 50257 * d and work.stream == 12 * 2 * d * (1024 + 0.5)
    assert work.gemm == work.attention == 0
    half = setting(batch=2)
    assert steps(half, "single", 1, at.even)["local"].ranks[0].gemm == 2 * (12 * 12 * d * d + 50257 * d)


def test_sequences_are_spread_over_last_ranks():
    """The first sequence's last rank is the last one, the second's the one before it; six on four ranks: 1, 1, 2, 2."""
    at = setting(batch=6)
    busy = [work.weights > 0 for work in steps(setting(batch=2), "sp", 8, at.even)["local"].ranks]
    assert busy == [False, False, True, True]
    cache = steps(at, "sp", 8, at.even)["local"].cache_bytes
    assert [n / min(cache) for n in cache] == [1, 1, 2, 2]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("strategy", ["sp", "astra"])
def test_crossover_is_where_both_take_equally_long(family, strategy):
    at = setting(tokens=32768, family=family, rtt_s=1e-4)
    ways = steps(at, strategy, 64, at.even)
    bps = crossover_bps(at, ways)
    assert bps is not None
    network = Network(bps, at.network.rtt_s)
    local, merged = (compute_seconds(at, ways[mode]) + wait_seconds(ways[mode], network) for mode in MODES)
    assert local == pytest.approx(merged, rel=1e-9)
    faster = wait_seconds(ways["merged"], Network(2 * bps, at.network.rtt_s))
    assert compute_seconds(at, ways["merged"]) + faster < local


def test_crossover_falls_with_the_context_and_needs_ranks():
    found = [crossover_bps(at, steps(at, "sp", 64, at.even)) for at in map(setting, (4096, 16384, 65536))]
    assert found[0] > found[1] > found[2] > 0
    short = setting(64)
    assert crossover_bps(short, steps(short, "sp", 4, short.even)) is None  # the round trips alone take longer
    one = setting(65536, ranks=1)
    assert crossover_bps(one, steps(one, "sp", 4, one.even)) is None


def test_verdict():
    slow = decode_plan(setting(mbps=10), 20)
    assert "use astra (approximate), decoded local" in decode_advice(slow)[0]
    alone = decode_plan(setting(64, mbps=1), 500)
    assert "stay on one rank" in decode_advice(alone)[0]
    rows = {row["strategy"]: row for row in slow["strategies"]}
    assert list(rows) == list(STRATEGIES)
    assert {name for name, row in rows.items() if "skipped" in row} == {"tp", "bp", "bp:sp", "astra:late"}
    assert set(rows["single"]["modes"]) == {"local"} and rows["astra"]["best"] == "local"
    way = rows["astra"]["modes"]["merged"]
    assert way["total_s"] == pytest.approx(way["first_token_s"] + 19 * way["per_token_s"])
    assert way["decode_bytes"][1] == 12 * 12 * 66 * 4 + 1


def test_drafts_share_waits():
    """On a link with long round trips a token costs a share of them; with drafts that are never right, what it did."""
    setting = Setting(llama_config(d_model=96), 40, (assumed_speeds(50),) * 3, Network(1e8, 0.05), 2)
    for acceptance, least, most in ((0.0, 1.0, 1.0), (0.9, 3.0, 8.0)):
        for row in decode_plan(setting, 20, acceptance)["strategies"]:
            for way in row.get("modes", {}).values():
                drafts = way["drafts"]
                assert drafts["per_token_s"] <= way["per_token_s"] and drafts["draft_tokens"] <= 7
                assert drafts["tokens_per_pass"] == pytest.approx(
                    (1 - acceptance ** (1 + drafts["draft_tokens"])) / (1 - acceptance)
                )
                assert drafts["tokens_per_s"] == pytest.approx(2 / drafts["per_token_s"])
            if "merged" in row.get("modes", {}):
                way = row["modes"]["merged"]
                assert least <= way["per_token_s"] / way["drafts"]["per_token_s"] <= most
    with pytest.raises(InputError, match="--draft-acceptance 1: a probability"):
        decode_plan(setting, 20, 1)


@pytest.mark.parametrize("make", [gpt2_config, llama_config])
def test_command(tmp_path, capsys, make):
    write_model(tmp_path / "g.h5", model_file(make()))
    options = ["plan", str(tmp_path / "g.h5"), "-n", "3", "--bandwidth", "10Mbps", "--tokens", "20"]
    args = _parser().parse_args([*options, "--new-tokens", "9", "--json", str(tmp_path / "p.json")])
    assert args.run(args) == 0
    out = capsys.readouterr().out
    assert "drafts" not in out and "9 new tokens: " in out and "merged" in out and "For 9 new tokens" in out
    answer = json.loads((tmp_path / "p.json").read_text())
    assert answer["decode"]["new_tokens"] == 9 and "For 9 new tokens" in answer["verdict"][-1]
    args = _parser().parse_args([*options, "--new-tokens", "9", "--draft-acceptance", "0.8"])
    assert args.run(args) == 0 and " tokens per pass at acceptance 0.8" in capsys.readouterr().out
    args = _parser().parse_args([*options, "--new-tokens", "9", "--plot", str(tmp_path / "p.svg")])
    pytest.importorskip("matplotlib")
    assert args.run(args) == 0
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("config", "n_new", "said"),
    [(bert_config(), 5, "--new-tokens is for decoders"), (gpt2_config(), 0, "--new-tokens 0: at least 1")],
)
def test_bad_input(tmp_path, config, n_new, said):
    write_model(tmp_path / "m.h5", model_file(config))
    options = ["plan", str(tmp_path / "m.h5"), "-n", "3", "--bandwidth", "10Mbps", "--new-tokens", str(n_new)]
    args = _parser().parse_args(options)
    with pytest.raises(InputError, match=said):
        args.run(args)
