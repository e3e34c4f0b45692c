"""Stages of blocks: the same answers as one rank, what each rank holds, what is handed on, every way to fail."""

from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import astra_mpi
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.costs import stages as costs
from astra_mpi.errors import AstraError, InputError
from astra_mpi.files.modelfile import write_model
from astra_mpi.oracle.verify import verify
from astra_mpi.ranks.broadcast import broadcast_text
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file, vit_config

pytestmark = pytest.mark.mpi
CONFIGS = {
    "bert": bert_config(n_layers=5),
    "gpt2": gpt2_config(n_layers=5),
    "llama": llama_config(n_layers=5, tied=False, windows=(4, 0, 4, 0, 4)),
    "vit": vit_config(n_layers=5),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rank 0's temporary folder, with a model of each family, of five blocks; written once, and not changed."""
    comm = MPI.COMM_WORLD
    if comm.size < 2:
        pytest.skip("two ranks or more")
    shared = Path(broadcast_text(comm, str(tmp_path_factory.mktemp("stages"))))
    if comm.rank == 0:
        for name, config in CONFIGS.items():
            write_model(shared / f"{name}.h5", model_file(config, CodecConfig(stages=2, codebook_size=16)))
    comm.Barrier()
    return shared


@pytest.fixture
def small_passes(monkeypatch):
    """A sequence of a decoder goes through the stages in pieces of few tokens."""
    monkeypatch.setattr(costs, "ROWS_OF_A_PASS", 0.2)


def grids(size):
    """Grids of several stages for so many ranks."""
    found = [f"1x{size}x1"] + [f"1x{size // 2}x2"] * (size > 2 and size % 2 == 0)
    return found + ["2x2x1"] * (size == 4)


@pytest.mark.parametrize("name", CONFIGS)
def test_stages_answer_as_one_rank_does(comm, folder, name):
    """To the bit where a stage is one rank and rows are handed on in float32; codes inside, activations between.

    Families take turns with the two rounded types; on four ranks each family and each grid sees both.
    """
    inputs, mask = random_batch(CONFIGS[name], 3, None if name == "vit" else 11, ragged=name != "vit")
    alone = astra_mpi.load(str(folder / f"{name}.h5"), comm=comm.Split(comm.rank), strategy="single")
    want = [alone(inputs[i : i + 1], None if mask is None else mask[i : i + 1]) for i in range(3)]
    want, largest = np.concatenate(want), np.abs(want[0]).max()
    for i, grid in enumerate(grids(comm.size)):
        rounded = ("float16", 4e-3), ("int8", 0.2)
        for handed, tolerance in (("float32", 2e-6), rounded[(list(CONFIGS).index(name) + i) % 2]):
            options = dict(grid=grid, strategy="sp", stages="even", handed_on=handed)
            model = astra_mpi.load(str(folder / f"{name}.h5"), comm=comm, **options)
            answer = model(inputs, mask)
            assert np.abs(answer - want).max() <= tolerance * largest, (grid, handed)
            report = model.report
            assert report["contributed_bytes"] == report["formula_bytes"] and report["grid"] == grid
            if grid == f"1x{comm.size}x1" and handed == "float32":
                one = model(inputs[:1], None if mask is None else mask[:1])  # a head takes all sequences at once
                assert one.tobytes() == want[:1].tobytes()
                assert sum(report["blocks"]) == 5 and len(report["weight_bytes"]) == comm.size
                assert sum(report["weight_bytes"]) <= alone.report["weight_bytes"][0] * 1.5
                assert report["handed_bytes"][-1] == 0 and min(report["handed_bytes"][:-1]) > 0


def test_a_rank_holds_its_blocks_only(comm, folder):
    for name in ("gpt2", "llama"):
        model = astra_mpi.load(str(folder / f"{name}.h5"), comm=comm, strategy="single", grid=f"1x{comm.size}x1")
        part = model.parts[comm.rank]
        held = {name.split(".")[1] for name in model.weights if name.startswith("blocks.")}
        assert held == {str(i) for i in range(part.end - part.first)} and part.end > part.first
        assert ("embed.word" in model.weights) == (comm.rank == 0)
        assert ("head.weight" in model.weights) == (name == "llama" and comm.rank == comm.size - 1)
        assert model.head_stage == (0 if name == "gpt2" else comm.size - 1)
    path, grid, blocks = str(folder / "gpt2.h5"), f"1x{comm.size}x1", [2, *[1] * (comm.size - 2), 5 - comm.size]
    model = astra_mpi.load(path, comm=comm, strategy="single", grid=grid, stages=blocks)
    assert [part.end - part.first for part in model.parts] == blocks
    for stages, message in (("fast", "use auto, even"), ([5], "give"), ([9] * comm.size, "are .* blocks")):
        with pytest.raises(InputError, match=message):
            astra_mpi.load(path, comm=comm, grid=grid, stages=stages)
    if comm.rank == 0:
        write_model(folder / "small.h5", model_file(gpt2_config(n_layers=1)))
    comm.Barrier()
    with pytest.raises(InputError, match="has 1 blocks, and the grid"):
        astra_mpi.load(str(folder / "small.h5"), comm=comm, grid=grid)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_verify_over_stages(comm, folder, name, small_passes):
    inputs, mask = random_batch(CONFIGS[name], 2, 9, ragged=True)
    for grid in grids(comm.size):
        model = astra_mpi.load(str(folder / f"{name}.h5"), comm=comm, strategy="single", grid=grid, stages="even")
        checks = verify(model, inputs, mask, ["single", "sp", "tp", "astra", "bp"])
        if comm.rank == 0:
            assert all(check.passed for check in checks), checks
            assert len([check for check in checks if not check.reason.startswith("skipped")]) == 10


@pytest.mark.parametrize("stage", [0, 1])
def test_a_failure_in_a_stage_is_every_rank_s(comm, folder, stage, small_passes):
    """In the second of several parts; the next pass is well."""
    for grid in grids(comm.size)[:2]:
        model = astra_mpi.load(str(folder / "gpt2.h5"), comm=comm, strategy="sp", grid=grid)
        inputs, mask = random_batch(CONFIGS["gpt2"], 4, 7)
        block, calls, at = model.strategy.steps, [], len(model.blocks) + 1

        def failing(i, x, block=block, calls=calls, at=at):
            calls.append(i)
            if len(calls) == at:
                raise AstraError("broken")
            return block(i, x)

        if model.stage == stage and model.token == 0:
            model.strategy.steps = failing
        with pytest.raises(AstraError, match="broken") as caught:
            model(inputs, mask)
        assert caught.value.collective
        model.strategy.steps = block
        assert model(inputs, mask).shape == (4, 53)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_text_over_stages_is_that_of_one_rank(comm, folder, name, small_passes):
    """Greedy ids and likelihoods, prompts of uneven lengths, each with its own end; the head first or last."""
    ids, mask = random_batch(CONFIGS[name], 5, 9, ragged=True)
    alone = astra_mpi.load(str(folder / f"{name}.h5"), comm=comm.Split(comm.rank), strategy="single")
    want = alone.generate(ids, mask, max_new_tokens=6)
    stop = [int(want[1, 2])]
    ended = alone.generate(ids, mask, max_new_tokens=6, stop=stop)
    scores = alone.nll(ids, mask, np.zeros(5, np.int64))
    for grid in grids(comm.size):
        options = dict(comm=comm, strategy="sp", grid=grid, handed_on="float32", stages="even")
        model = astra_mpi.load(str(folder / f"{name}.h5"), **options)
        np.testing.assert_array_equal(model.generate(ids, mask, max_new_tokens=6), want)
        np.testing.assert_array_equal(model.generate(ids, mask, max_new_tokens=6, stop=stop), ended)
        np.testing.assert_allclose(model.nll(ids, mask, np.zeros(5, np.int64)), scores, rtol=1e-5)
        told = model.report
        if not grid.startswith("1x"):
            continue
        seen = []
        new = model.generate(
            ids[:1], mask[:1], max_new_tokens=6, on_tokens=lambda s, i, seen=seen: seen.append(int(i[0]))
        )
        assert new[0].tolist() == want[0].tolist() and (comm.rank > 0 or seen == want[0].tolist())
        made, told_so_far = model.report["generation"], []
        few = model.generate(
            ids[:1],
            mask[:1],
            on_tokens=lambda *_, seen=told_so_far: seen.append(1),
            enough=lambda seen=told_so_far: len(seen) == 2,
            max_new_tokens=6,
        )
        if grid == f"1x{comm.size}x1":
            assert few[0].tolist() == [*want[0, :2].tolist(), -1, -1, -1, -1]
        assert made["new_tokens"] == [6] and made["first_token_s"] > 0 and len(made["cache_bytes"]) == comm.size
        if grid == f"1x{comm.size}x1":  # a row of D numbers per stage and token, with which sequence it is of
            assert made["handed_bytes"][: comm.size - 1] == [5 * (16 + 4 * 24) + 8] * (comm.size - 1)
            assert sum(made["cache_bytes"]) <= made["full_cache_bytes"] * 1.3
        assert told["blocks"] == model.report["blocks"]
        with pytest.raises(InputError, match="merged"):
            model.generate(ids, mask, max_new_tokens=1, decode="merged")
        with pytest.raises(InputError, match="stages of blocks check no drafts"):
            model.generate(ids, mask, max_new_tokens=1, draft="lookup")


def test_a_sampler_that_fails_in_a_stage_ends_all(comm, folder):
    ids, mask = random_batch(CONFIGS["gpt2"], 4, 9, ragged=True)
    for name in ("gpt2", "llama"):
        model = astra_mpi.load(str(folder / f"{name}.h5"), comm=comm, strategy="sp", grid=grids(comm.size)[0])

        def sample(logits, sequences, step):
            if step == 2 and 3 in sequences:
                raise AstraError("no more words")
            return logits.argmax(axis=1)

        with pytest.raises(AstraError, match="no more words"):
            model.generate(ids, mask, max_new_tokens=5, sample=sample)
        assert model.generate(ids, mask, max_new_tokens=2).shape == (4, 2)
