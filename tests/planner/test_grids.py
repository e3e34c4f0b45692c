"""Plans of grids: what is best for one input and for a job, under memory, and the command."""

import gc
import json
import time

import pytest

from astra_mpi.cli import _parse
from astra_mpi.costs.latency import Network, assumed_speeds
from astra_mpi.costs.setting import Setting
from astra_mpi.costs.stages import ROWS_OF_A_PASS, ends_of, outside_weights, parting
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import write_model
from astra_mpi.models.gpt2 import GPT2Config
from astra_mpi.models.llama import LlamaConfig
from astra_mpi.network.units import memory_bytes
from astra_mpi.partition import split_blocks
from astra_mpi.planner.grid_plan import grid_advice, grid_plan
from astra_mpi.planner.stage_cut import levelled
from helpers.fakes import bert_config, model_file

LLAMA_8B = LlamaConfig(4096, 32, 8, 32, 14336, "silu", 1e-5, vocab_size=128256, max_positions=8192, tied=False)
GPT2 = GPT2Config(768, 12, 12, 12, 3072, "gelu_tanh", 1e-5, vocab_size=50257, max_positions=1024)


def setting(config=GPT2, speeds=(1.0,) * 4, bps=1e7, tokens=512, **changes):
    return Setting(config, tokens, tuple(assumed_speeds(50 * s) for s in speeds), Network(bps, 1e-3), **changes)


def test_blocks_of_stages():
    assert split_blocks(12, [1, 1, 1]) == [4, 4, 4]
    assert split_blocks(12, [0.7, 0.6, 0.4, 0.3]) == [4, 4, 2, 2]
    assert split_blocks(5, [1, 1], [1, 9]) == [1, 4]
    assert split_blocks(5, [1, 1], [1, 3]) is None
    assert split_blocks(2, [1, 1, 1]) == [1, 1, 0]


def test_speeds_that_differ_by_little_are_equal():
    """What a short measurement tells is wrong by some percent, and a block more costs a stage a third."""
    assert levelled(12, [1.2, 1.0, 1.1, 0.95]) == [1.0] * 4
    assert levelled(12, [0.7, 0.6, 0.4, 0.3]) == [0.7, 0.6, 0.4, 0.3]
    assert levelled(2, [3.0, 1.0, 1.0]) == [3.0, 1.0, 1.0]


def test_a_job_of_many_is_best_served_by_replicas():
    """Exact, and with the speeds of all ranks together; one input by the ranks together, or by one."""
    plan = grid_plan(setting(), "throughput", None, "float16")
    job, one = plan["best"]["throughput"], plan["best"]["latency"]
    assert (job["grid"], job["strategy"], job["exact"]) == ("4x1x1", "single", True)
    alone = next(row for row in plan["grids"] if row["grid"] == "4x1x1")
    assert job["sequences_per_s"] == pytest.approx(4 / alone["latency_s"])
    assert one["grid"] == "1x1x4" and one["strategy"].startswith("astra") and not one["exact"]
    uneven = grid_plan(setting(speeds=(0.7, 0.6, 0.4, 0.3)), "throughput", None, "float16")
    half = next(row for row in uneven["grids"] if row["grid"] == "4x1x1")
    assert half["sequences_per_s"] == pytest.approx(job["sequences_per_s"] / 2, rel=1e-3)  # blocks cost some time each
    rates = [row["sequences_per_s"] for row in uneven["grids"]]
    assert rates == sorted(rates, reverse=True)


def test_a_link_that_is_too_slow_for_the_inputs_of_replicas():
    plan = grid_plan(setting(bps=2e3), "throughput", None, "float16")
    assert max(row["sequences_per_s"] for row in plan["grids"]) < 2e3 / 8 / (4 * 512) * 2 + 1


def test_what_does_not_fit_is_named_and_stages_are_cut_by_memory():
    small = setting(LLAMA_8B, tokens=128, bps=1e8, weight_bytes=2.0)
    plan = grid_plan(small, "latency", [5.5e9], "float16")
    assert {(row["grid"], row["strategy"]) for row in plan["grids"]} == {("1x4x1", "single"), ("1x2x2", "tp")}
    row = next(row for row in plan["grids"] if row["grid"] == "1x4x1")
    assert max(row["memory_bytes"]) <= 5.5e9 and sum(row["blocks"]) == 32 and row["strategy"] == "single"
    assert {row["grid"] for row in plan["misfits"]} == {"1x1x4", "2x1x2", "2x2x1", "4x1x1"}
    assert any("These do not fit" in line for line in grid_advice(plan, 4))
    uneven = grid_plan(small, "latency", [12e9, 3e9, 3e9, 3e9], "float16")
    blocks = next(row["blocks"] for row in uneven["grids"] if row["grid"] == "1x4x1")
    assert sum(blocks) == 32 and blocks[0] > 2 * max(blocks[1:])
    nothing = grid_plan(small, "latency", [1e9], "float16")
    assert nothing["best"]["latency"] is None and "No grid fits" in grid_advice(nothing, 4)[0]
    with pytest.raises(InputError, match="--memory has 3 numbers for 4 ranks"):
        grid_plan(small, "latency", [1e9] * 3, "float16")
    with pytest.raises(InputError, match="--objective speed"):
        grid_plan(small, "speed", None, "float16")


def test_weights_outside_the_blocks():
    ends = ends_of(GPT2)
    assert ends.shared == 50257 * 768 and ends.embed == ends.shared + 1024 * 768 and ends.head == 2 * 768
    assert outside_weights(ends, 3, 2) == [ends.embed, 0, ends.head + ends.shared]
    assert outside_weights(ends, 3, 0) == [ends.embed + ends.head, 0, 0]


def test_under_a_second_for_64_ranks():
    many = setting(LLAMA_8B, [1 + 0.01 * i for i in range(64)], tokens=128, bps=1e8, weight_bytes=2.0)
    gc.freeze()  # what other tests have left is not searched
    begin_s = time.process_time()
    plan = grid_plan(many, "throughput", [5.5e9], "float16")
    assert len(plan["grids"]) > 100
    spent_s = time.process_time() - begin_s
    gc.unfreeze()
    assert spent_s < 1.0


def test_the_command(tmp_path, capsys):
    write_model(tmp_path / "model.h5", model_file(bert_config()))
    args = ["plan", str(tmp_path / "model.h5"), "-n", "4", "--bandwidth", "10Mbps", "--objective", "throughput"]
    args = _parse([*args, "--memory", "1GB", "--json", str(tmp_path / "plan.json")])
    assert args.run(args) == 0
    said = capsys.readouterr().out
    assert "grids by throughput" in said and "For a job of many: grid 4x1x1 with single (exact)" in said
    told = json.loads((tmp_path / "plan.json").read_text())["grids"]
    assert told["memory_bytes"] == [10**9] * 4 and told["best"]["throughput"]["grid"] == "4x1x1"
    assert memory_bytes("2GiB") == 2.0**31
    for wrong in ("8", "0GB", "8apples"):
        with pytest.raises(InputError, match="memory"):
            memory_bytes(wrong)


@pytest.mark.parametrize(("n_sequences", "tokens"), [(0, 0), (1, 1), (1, 1000), (3, 7), (7, 129), (8, 512)])
def test_how_a_batch_is_parted(n_sequences, tokens):
    """Nearly as soon through as the best of all ways, whole sequences before pieces; pieces only where they can be."""
    n_rows = n_sequences * tokens

    def turns(parts, pieces):
        largest = n_rows * -(-n_sequences // parts) / max(n_sequences, 1)
        return (parts * pieces + 3) * (largest / pieces + ROWS_OF_A_PASS)

    way = parting(n_sequences, n_rows, 4)
    least = min(turns(p, q) for p in range(1, max(1, n_sequences) + 1) for q in range(1, 80))
    assert (
        turns(*way) <= 1.03 * least and 1 <= way.parts <= max(1, n_sequences) and way.passes == way.parts * way.pieces
    )
    assert not any(turns(p, q) <= 1.03 * least for p in range(way.parts + 1, n_sequences + 1) for q in range(1, 80))
    assert parting(n_sequences, n_rows, 4, in_pieces=False).pieces == parting(n_sequences, n_rows, 4, 2).pieces == 1
    assert parting(n_sequences, n_rows, 4, widens=True).passes <= way.passes
    assert parting(n_sequences, n_rows, 4, n_parts=2).parts == 2
