"""The wire that `plan` names: no less accurate on quicker links, hidden, and made by the options that it says."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_mpi.cli import main
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.presets import preset_config
from astra_mpi.costs.latency import Network, assumed_speeds
from astra_mpi.costs.setting import Setting
from astra_mpi.costs.wires import Coding
from astra_mpi.files.codecfile import read_codebooks
from astra_mpi.files.modelfile import read_model, write_model
from astra_mpi.planner.hiding import OPEN, _named, hiding_advice, wires
from astra_mpi.planner.measured import measured
from helpers.fakes import bert_config, llama_config, model_file

SMOLLM2 = llama_config(
    d_model=576, n_heads=9, n_kv_heads=3, n_layers=30, d_ff=1536, vocab_size=49152, max_positions=8192
)
BANDWIDTHS = [float(bps) for bps in np.geomspace(1e6, 1e9, 10)]


def named(setting, bps):
    rows = wires(replace(setting, network=setting.network._replace(bandwidth_bps=bps)))
    (row,) = [row for row in rows if row["named"]]
    return row


def over_exact(row):
    """Perplexity."""
    return 1.0 if row["measured"] == "exact" else float(row["measured"].split("x")[0])


settings_of_smollm2 = st.builds(
    lambda ranks, gflops, rtt_s, tokens: Setting(
        SMOLLM2, tokens, (assumed_speeds(gflops),) * ranks, Network(1e8, rtt_s)
    ),
    st.sampled_from([2, 4, 8]), st.sampled_from([5, 50, 500]), st.sampled_from([0, 1e-3, 2e-2]),
    st.sampled_from([128, 1024, 8192]),
)  # fmt: skip


@settings(deadline=None, max_examples=8)
@given(settings_of_smollm2)
def test_perplexity_never_rises_with_bandwidth(setting):
    rows, found = wires(setting), []
    for bps in BANDWIDTHS:
        for row in rows:
            row["hides"] = row["hides_above_bps"] is not None and bps >= row["hides_above_bps"]
        found.append(over_exact(_named(rows)))
    assert found == sorted(found, reverse=True)


def test_every_wire_of_smollm2_is_named_somewhere():
    """Ranks of 50 GFLOP/s: from codes of 10 bits at 1 Mbps to exact keys and values at 1 Gbps."""
    setting = Setting(SMOLLM2, 1024, (assumed_speeds(50),) * 4, Network(1e8, 1e-3))
    found = [named(setting, bps) for bps in BANDWIDTHS]
    assert found[0]["strategy"] == "astra" and found[-1]["strategy"] == "sp:kv"
    bits = [row["bits_per_token_per_block"] for row in found]
    assert bits == sorted(bits) and {1024, 3104, 12288} < set(bits)
    for row in found[1:]:
        assert row["hides"] and row["wait_s"] <= 1.000001 * OPEN * row["latency_s"]


def test_wires_are_more_accurate_with_more_bits():
    for config in (SMOLLM2, bert_config(), preset_config("vit-base", 196), preset_config("gpt2", 1024)):
        rows = wires(Setting(config, 15, (assumed_speeds(50),) * 4, Network(1e6, 1e-3)))
        bits = [row["bits_per_token_per_block"] for row in rows]
        assert bits == sorted(set(bits), reverse=True) and rows[0]["measured"] == "exact"
        assert sum(row["named"] for row in rows) == 1
    assert wires(Setting(SMOLLM2, 15, (assumed_speeds(50),), Network(1e6, 1e-3))) == []


def test_where_nothing_hides_the_nearest_is_named():
    setting = Setting(SMOLLM2, 64, (assumed_speeds(5000),) * 4, Network(1e4, 1.0))
    rows = wires(setting)
    assert [row["named"] for row in rows] == [*[False] * (len(rows) - 1), True]
    assert "no wire hides behind the compute; the nearest is" in hiding_advice(rows, 1e4)[0]


def test_codebooks_at_hand_count_as_they_are():
    """Entries that are searched in few directions hide less."""
    codec = next(codec for codec in measured("llama", 30).codecs if codec.kind == "residual")
    setting = Setting(SMOLLM2, 64, (assumed_speeds(50),) * 4, Network(1e8, 1e-3))
    narrow, wide = (
        next(row for row in wires(replace(setting, coding=coding)) if row["codec"] == codec.as_dict())
        for coding in (Coding(codec, (8,)), Coding(codec, (None,)))
    )
    assert narrow["latency_s"] < wide["latency_s"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    config = llama_config(d_model=128, n_heads=4, n_kv_heads=4, n_layers=3)
    write_model(folder / "m.h5", model_file(config, CodecConfig(site="kv", stages=1, codebook_size=4)))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (64, 32))
    np.save(folder / "ids.npy", ids)
    return folder


def test_commands_make_the_codes_that_are_named(llama, capsys):
    pytest.importorskip("torch")
    assert main(["plan", str(llama / "m.h5"), "-n", "4", "--bandwidth", "1Mbps", "--json", "-"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["wires"] if row["codec"]]
    assert {row["codec"]["kind"] for row in rows} == {"scalar", "residual"}
    digest = read_model(llama / "m.h5").digest
    for n, row in enumerate(rows):
        told = f"--data {llama / 'ids.npy'} --samples 300 --sinks 0 --awaited 0 --codebook-only -o {llama / f'{n}.h5'}"
        assert main(["calibrate", str(llama / "m.h5"), *told.split(), *row["calibrate"].split()]) == 0
        made = read_codebooks(llama / f"{n}.h5", digest).config
        assert replace(made, encoder="auto").as_dict() == row["codec"]
