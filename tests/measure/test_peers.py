"""jobs/peers: rows, verdicts, the page and its chart from cells on disk; how tensor parallelism is cut."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

JOB = Path(__file__).parents[2] / "jobs" / "peers"


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(JOB))
    yield
    for name in [name for name, one in sys.modules.items() if str(JOB) in str(getattr(one, "__file__", ""))]:
        del sys.modules[name]


def astra(name="ours-astra"):
    from contestants import BY_NAME

    return BY_NAME[name]


def passes(pass_s, pass_cpu_s):
    return {"pass_s": pass_s, "pass_cpu_s": pass_cpu_s, "sent_bytes": [1e6], "peak_bytes": 3e8, "off": 0.01}


@pytest.fixture
def work(tmp_path):
    """One node and two links: who is first changes with the link."""
    (tmp_path / "files").mkdir()
    (tmp_path / "cells").mkdir()
    (tmp_path / "files" / "exact.json").write_text(json.dumps({"1024": [5, 6, 7]}))
    perplexity = {"exact": 20.0, "bits": 61.3, "of": {astra().process: 21.0, astra("ours-astra-int8").process: 21.1}}
    (tmp_path / "files" / "perplexity.json").write_text(json.dumps(perplexity))
    (tmp_path / "cells" / "machine.json").write_text(json.dumps({"cpu": "a CPU", "cores": 2}))
    encoders = {
        "core vit-196 ours-int8": passes([0.3], [0.1]),
        "node vit-196 ours-int8": passes([0.2], [0.1]),
        "node vit-196 torch-bfloat16": passes([0.31, 0.3, 0.5], [0.1] * 3),
        "node vit-196 onnx-int8": passes([0.4], [0.1]),
        "10 vit-196 ours-astra-int8": passes([0.1], [0.05]),
        "100 vit-196 ours-sp": passes([0.62], [0.1]),
    }
    (tmp_path / "cells" / "encoders.json").write_text(json.dumps(encoders))
    texts = {"model": "a model", "items": 4, "found": {"onnx": {"median_ms": 7.0, "min_ms": 6.0, "off": 1e-6}}}
    (tmp_path / "cells" / "texts.json").write_text(json.dumps(texts))
    times = {
        ("core", "ours-int8"): [(1.0, 0.004)],
        ("node", "ours-int8"): [(2.0, 0.008)],
        ("node", "torch-bfloat16"): [(3.0, 0.05), (9.0, 0.07), (3.2, 0.06)],
        ("node", "llama-q8_0"): [(4.0, 0.01)],
        ("10", "ours-astra"): [(1.0, 0.02)],
        ("100", "ours-astra"): [(1.0, 0.005)],
        ("100", "ours-astra-int8"): [(0.9, 0.005)],
        ("100", "llama-rpc"): [(0.5, 0.3)],
    }
    for (place, name), turns in times.items():
        told = [
            {"first_s": s, "first_cpu_s": s / 4, "token_s": t, "token_cpu_s": t / 4, "first_bytes": 3e6}
            for s, t in turns
        ]
        answer = [5, 6, 8] if name == "ours-astra" else [5, 6, 7]
        cell = {"place": place, "contestant": name, "tokens": 1024, "turns": told, "answer": answer, "new": 3}
        cell |= {"peak_bytes": [1e8, 2e8], "token_bytes": 1500.0, "load_s": 72.0}
        (tmp_path / "cells" / f"{place}-{name}-1024.json").write_text(json.dumps(cell))
    out = {"place": "10", "contestant": "torch-tp", "tokens": 1024, "turns": [], "left_out": 700.0}
    (tmp_path / "cells" / "10-torch-tp-1024.json").write_text(json.dumps(out))
    return tmp_path


def test_rows_are_medians_and_cpu_seconds_on_a_core(work):
    from contestants import BY_NAME
    from figures import read

    figures = read(work)
    torch = figures.get("node", BY_NAME["torch-bfloat16"], 1024)
    assert (torch.first_s, torch.token_s, torch.repeats, torch.same) == (3.2, 0.06, 3, 3)
    assert figures.get("core", BY_NAME["ours-int8"], 1024).first_s == 0.25
    astra = figures.get("10", BY_NAME["ours-astra"], 1024)
    assert astra.same == 2 and astra.peak_bytes == 2e8
    assert figures.links() == ["10", "100"] and figures.lengths() == [1024]
    assert figures.left_out == {("10", "torch-tp", 1024): 700.0}
    assert figures.best("first_s", 1024, ("node", "100"), ours=False).contestant.name == "llama-rpc"


def test_the_page_says_where_a_peer_wins_and_whether_the_goal_is_reached(work):
    from figures import read
    from page import on_four
    from verdicts import goal, reached, winners

    figures = read(work)
    said = winners(figures).splitlines()
    assert said[0].startswith("- 1024 tokens, 10 Mbit/s, first token: this project, `astra`, bfloat16, 4 nodes, 3.20x")
    assert said[2].startswith(
        "- 1024 tokens, 100 Mbit/s, first token: **a peer wins:** llama.cpp, RPC, Q8_0, 4 nodes, 1.80x"
    )
    assert "a peer wins" not in said[3]  # ours on one node
    assert "0.50 to 3.20 times as soon" in reached(figures) and "reached in some cases" in reached(figures)
    assert "0.50 to 2.00 times as fast" in reached(figures)
    rows = goal(figures).splitlines()
    assert len(rows) == 4 and "int8" not in rows[3].split("|")[3]  # sooner, but beyond 1.05x
    assert rows[2].startswith(
        "| 1024 | 10 | `astra`, bfloat16 | 1.00 | 3.20 (PyTorch, bfloat16, one node) | 3.20x | 20.0"
    )
    table = on_four(figures, 1024)
    assert "| PyTorch, tensor parallelism, bfloat16 | > 700 | - |" in table
    assert "| 1.00; 20 | 1.00; 5 | 3 MB; 1.5 kB | 200 | 72 | 2 of 3 | 1.050x |" in table


def test_the_page_is_written_between_its_marks_with_a_chart(work, monkeypatch):
    import page

    path = work / "peers.md"
    path.write_text(f"# Title\n\n{page.BEGIN}\nold\n{page.END}\n\nProse.\n")
    monkeypatch.setattr(sys, "argv", ["page.py", str(work), "--write", str(path)])
    page.main()
    text, picture = path.read_text(), path.with_suffix(".svg").read_bytes()
    assert text.startswith("# Title") and text.endswith("Prose.\n") and "old" not in text
    assert (
        "| onnx | 7 | 6 | 1.0e-06 |" in text
        and "| 1.050x |" in text
        and "over the exact 20.00" in text
        and "![" in text
        and "## ViT-Base, one image of 224" in text
        and "## ViT-Base, one image of 512" not in text
        and picture.startswith(b"<?xml")
    )
    page.main()
    assert path.read_text() == text and path.with_suffix(".svg").read_bytes() == picture
    path.write_text("# No marks\n")
    with pytest.raises(SystemExit, match="put them where the figures belong"):
        page.main()


def test_encoders_on_four_nodes_stand_beside_the_best_peer_on_one(work):
    from encoder_tables import of_encoders
    from figures import read

    table = of_encoders(read(work).encoders, "vit-196")
    assert "| this project, int8, one node | 100 | 200 | - | - | - | 300 | 1.0e-02 |" in table
    assert "| PyTorch, bfloat16, one node | - | 310 | - | - | - |" in table
    assert "| this project, `astra`, int8, 4 nodes | - | - | 100 (3.10x) | - | 1 MB | 300 | - |" in table  # untrained
    assert "| this project, `sp`, bfloat16, 4 nodes | - | - | - | 620 (0.50x) | 1 MB | 300 | 1.0e-02 |" in table


def test_results_of_encoders_are_kept_and_compared(tmp_path):
    from cells import EncoderCells

    (tmp_path / "cells").mkdir()
    answer = {"first_s": 0.2, "first_cpu_s": 0.1, "peak_bytes": [1, 5], "tokens": [1.0, 3.9]}
    key = ("node", "vit-196", "ours-int8")
    for _ in range(2):
        EncoderCells(tmp_path).add(*key, answer=answer, sent=0, exact=np.array([1.0, 4.0]))
    found = EncoderCells(tmp_path)
    assert found.passes(*key) == 2 and found.passes("node", "vit-196", "ours-sp") == 0
    assert (
        found.cells["node vit-196 ours-int8"]["off"] == pytest.approx(0.025)
        and found.cells[" ".join(key)]["peak_bytes"] == 5
    )


def test_heads_of_zeros_are_added_at_the_end(tmp_path):
    from run_dllama import padded
    from safetensors.numpy import load_file, save_file

    (tmp_path / "before").mkdir()
    config = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 2, "rope_parameters": {"rope_theta": 5.0}}
    (tmp_path / "before" / "config.json").write_text(json.dumps(config))
    shapes = {"q_proj": (12, 7), "k_proj": (6, 7), "v_proj": (6, 7), "o_proj": (7, 12), "input_layernorm": (7,)}
    rng = np.random.default_rng(0)
    weights = {f"model.layers.0.self_attn.{name}.weight": rng.normal(size=s) for name, s in shapes.items()}
    save_file(weights, tmp_path / "before" / "model.safetensors")
    (tmp_path / "after").mkdir()
    padded(tmp_path / "before", tmp_path / "after", 4)
    told, found = (
        json.loads((tmp_path / "after" / "config.json").read_text()),
        load_file(tmp_path / "after" / "model.safetensors"),
    )
    assert (told["num_attention_heads"], told["num_key_value_heads"], told["rope_theta"]) == (8, 4, 5.0)
    grown = {"q_proj": (16, 7), "k_proj": (8, 7), "v_proj": (8, 7), "o_proj": (7, 16), "input_layernorm": (7,)}
    for (name, weight), shape in zip(weights.items(), grown.values(), strict=True):
        assert found[name].shape == shape
        np.testing.assert_array_equal(found[name][tuple(map(slice, weight.shape))], weight)
        assert np.count_nonzero(found[name]) == weight.size


def test_peers_that_are_not_built_are_left_out_in_a_line(tmp_path, capsys):
    from measure import built

    names = ["dllama-q40", "ours-int8", "dllama-q40-tp"]
    assert built(tmp_path, names) == ["ours-int8"] and "DLLAMA=FOLDER" in capsys.readouterr().out
    (tmp_path / "dllama").mkdir()
    (tmp_path / "dllama" / "version").write_text("v1")
    assert built(tmp_path, names) == names and not capsys.readouterr().out


def test_tensor_parallelism_gives_every_rank_as_many_weights():
    from shares import shares

    for heads, kv, width, d_ff, d_head, size in ((9, 3, 576, 1536, 64, 4), (32, 8, 4096, 14336, 128, 4)):
        cut = shares(heads, kv, width, d_ff, d_head, size)
        assert sum(n for n, _ in cut) == kv and sum(columns for _, columns in cut) == d_ff
        weights = [n * width * d_head * (2 * heads // kv + 2) + 3 * width * columns for n, columns in cut]
        assert np.ptp(weights) < 0.01 * max(weights)


class Loaded:
    """A contestant that needs a second per 256 tokens."""

    load_s = 1.0

    def ask(self, n_tokens, n_new, call, limit_s):
        first_s = n_tokens / 256
        told = {"first_s": first_s, "first_cpu_s": first_s, "token_s": 0.1, "token_cpu_s": 0.1}
        return told | {"tokens": [1] * n_new, "peak_bytes": [10]}


def test_cells_are_kept_and_long_turns_left_out(tmp_path):
    import argparse

    from cells import Cell
    from contestants import BY_NAME
    from measure import one_turn

    args = argparse.Namespace(work=tmp_path, new=3, limit=10.0)
    (tmp_path / "cells").mkdir()
    short, long = (Cell(tmp_path, "core", BY_NAME["onnx-int8"], tokens) for tokens in (1024, 4096))
    assert not short.done(2)
    for _ in range(2):
        assert one_turn(Loaded(), short, args, 0.0) == "4.00 s, then 100.0 ms"
    assert short.done(2) and not short.done(3) and len(short.read()["turns"]) == 2
    assert one_turn(Loaded(), long, args, 0.0) == "left out: it would take 16 s"
    assert long.done(2) and long.read()["turns"] == [] and long.read()["left_out"] == 16.0
    args.limit, patient = 100.0, Cell(tmp_path, "core", BY_NAME["onnx-float32"], 16384)
    one_turn(Loaded(), patient, args, 0.0)
    assert patient.done(2)  # 64 s: not repeated
