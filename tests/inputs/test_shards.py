"""Shards of a job: which items they have, that together they give what one run gives, and what `merge` refuses."""

import json

import h5py
import numpy as np
import pytest

from astra_mpi.cli import main
from astra_mpi.decks.deck import load_deck
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import ModelFile, write_model
from astra_mpi.inputs.shards import parse_shard, resolve, shard_items, shard_path
from helpers.fakes import bert_config, model_file
from helpers.job import N_ITEMS, write_job, write_texts
from helpers.tokenizers import TEXT, byte_tokenizer


@pytest.mark.parametrize("by", ["contiguous", "strided"])
@pytest.mark.parametrize(("n_items", "count"), [(11, 3), (8, 4), (3, 5), (1, 1), (100, 7)])
def test_shards_hold_every_item_once(n_items, count, by):
    shards = [shard_items(n_items, f"{i}/{count}", by) for i in range(count)]
    assert sorted(item for shard in shards for item in shard) == list(range(n_items))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    if by == "contiguous":
        assert [item for shard in shards for item in shard] == list(range(n_items))


def test_number_of_a_shard():
    assert parse_shard("2/3", {}) == (2, 3)
    assert parse_shard("array/8", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "1"}) == (5, 8)
    for text, environment, words in (
        ("3/3", {}, "no shard 3 of 3, they are numbered from 0 to 2"),
        ("array/8", {"SLURM_ARRAY_TASK_ID": "8"}, "use --array=0-7"),
        ("array/8", {}, "SLURM_ARRAY_TASK_ID is not set; submit with --array=0-7"),
        ("array", {}, "does not fit"),
        ("-1/3", {}, "does not fit"),
        ("0/0", {}, "no shard 0 of 0"),
    ):
        with pytest.raises(InputError, match=words):
            parse_shard(text, environment)


def test_output_files_sort_by_number(tmp_path):
    names = [shard_path(tmp_path / "out.h5", i, 12).name for i in range(12)]
    assert names[3] == "out.03-of-12.h5" and names == sorted(names)


def run(folder, *arguments):
    return main(["run", str(folder / "deck.toml"), *arguments])


def shards(folder, count, *arguments):
    """Run all shards -> their files, last first."""
    for i in range(count):
        assert run(folder, "--shard", f"{i}/{count}", *arguments) == 0
    return [str(path) for path in sorted(folder.glob("out.*-of-*.h5"), reverse=True)]


@pytest.mark.parametrize("by", ["contiguous", "strided"])
def test_merged_shards_are_one_run(tmp_path, by, capsys):
    write_job(tmp_path)
    assert run(tmp_path) == 0
    parts = shards(tmp_path, 3, f"input.shard_by={by}")
    assert len(parts) == 3
    merged = tmp_path / "merged.h5"
    assert main(["merge", str(merged), *parts]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "merged.json").read_text()) == summary
    with h5py.File(tmp_path / "out.h5") as one, h5py.File(merged) as several:
        np.testing.assert_array_equal(several["inputs/index"], np.arange(N_ITEMS))
        np.testing.assert_allclose(several["outputs/embedding"], one["outputs/embedding"], rtol=0, atol=1e-5)
        whole = json.loads(one.attrs["summary"])
        assert json.loads(several.attrs["summary"]) == summary
        assert json.loads(several.attrs["state"])["input.shard"] is None
    for name in ("items", "tokens", "contributed_bytes", "formula_bytes"):
        assert summary[name] == whole[name]
    assert [piece["shard"] for piece in summary["merged_from"]] == ["0/3", "1/3", "2/3"]
    assert "elapsed_s" not in summary and all(piece["elapsed_s"] > 0 for piece in summary["merged_from"])


def test_shards_of_a_batch_s_size_give_the_same_bits(tmp_path):
    write_job(tmp_path)
    write_texts(tmp_path, 12)
    assert run(tmp_path) == 0
    assert main(["merge", str(tmp_path / "merged.h5"), *shards(tmp_path, 3)]) == 0
    with h5py.File(tmp_path / "out.h5") as one, h5py.File(tmp_path / "merged.h5") as several:
        np.testing.assert_array_equal(several["outputs/embedding"], one["outputs/embedding"])


def test_perplexity_of_shards(tmp_path):
    write_job(tmp_path, "perplexity")
    assert run(tmp_path) == 0
    assert main(["merge", str(tmp_path / "merged.h5"), *shards(tmp_path, 3, "input.shard_by=strided")]) == 0
    one, several = (json.loads((tmp_path / name).read_text())["metrics"] for name in ("out.json", "merged.json"))
    assert several["scored_tokens"] == one["scored_tokens"] == len(TEXT) - 1
    assert several["perplexity"] == pytest.approx(one["perplexity"], rel=1e-5)


def test_texts_of_shards(tmp_path):
    """Sampling is by the item's number in the whole input, so that shards do not change it."""
    write_job(tmp_path, "generate")
    write_texts(tmp_path, 7)
    options = ["task.max_new_tokens=5", "task.temperature=1.0", "parallel.strategy=sp"]
    assert run(tmp_path, *options) == 0
    assert main(["merge", str(tmp_path / "merged.h5"), *shards(tmp_path, 3, *options)]) == 0
    with h5py.File(tmp_path / "out.h5") as one, h5py.File(tmp_path / "merged.h5") as several:
        assert set(one["outputs"]) == set(several["outputs"])
        for name in one["outputs"]:
            assert (one["outputs"][name][()] == several["outputs"][name][()]).all(), name
    one, several = (json.loads((tmp_path / name).read_text())["metrics"] for name in ("out.json", "merged.json"))
    assert one["new_tokens"] == several["new_tokens"]


def test_a_shard_goes_on_under_its_own_name(tmp_path):
    write_job(tmp_path)
    deck = resolve(load_deck(tmp_path / "deck.toml", ["input.shard=1/3"]))
    assert deck.output.path.name == "out.1-of-3.h5" and deck.input.shard == "1/3"
    assert run(tmp_path, "--shard", "1/3") == 0
    before = (tmp_path / "out.1-of-3.h5").stat().st_mtime_ns
    assert run(tmp_path, "input.shard=1/3") == 0
    assert (tmp_path / "out.1-of-3.h5").stat().st_mtime_ns == before
    assert not (tmp_path / "out.h5").exists()


def refused(capsys, folder, *parts):
    """What `merge` says, which leaves no file."""
    capsys.readouterr()
    assert main(["merge", str(folder / "merged.h5"), *map(str, parts)]) == 2
    assert not list(folder.glob("*merged*"))
    return capsys.readouterr().err


def test_merge_refuses_gaps_overlaps_and_mixtures(tmp_path, capsys):
    write_job(tmp_path)
    last, middle, first = shards(tmp_path, 3)
    said = refused(capsys, tmp_path, first, last)
    assert "4 of 11 items, the first being 3, are in none of the files; finish shard 1 of 3" in said
    said = refused(capsys, tmp_path, first, middle, last, middle)
    assert "4 items, the first being 3, are in" in said and "give each shard once" in said
    assert run(tmp_path, "--shard", "0/2") == 0
    said = refused(capsys, tmp_path, tmp_path / "out.0-of-2.h5", middle, last)
    assert "2 items, the first being 3" in said and "out.1-of-3.h5" in said
    assert "give the files of all shards" in refused(capsys, tmp_path, tmp_path / "out.0-of-2.h5", last)
    said = refused(capsys, tmp_path, first, tmp_path / "in.txt")
    assert "is not an HDF5 file" in said
    assert "a model file; give a results file" in refused(capsys, tmp_path, first, tmp_path / "model.h5")


def test_merge_refuses_other_settings_models_and_inputs(tmp_path, capsys):
    write_job(tmp_path)
    first = shards(tmp_path, 2)[-1]
    for change, words in (
        (["task.normalize=true"], "task.normalize is True there and None here"),
        ([f"input.path={tmp_path}/other.txt"], "input_digest is"),
        ([f"model.path={tmp_path}/other.h5"], "codec_digest is"),
    ):
        (tmp_path / "other.txt").write_text("a\n" * N_ITEMS)
        file = model_file(bert_config(), seed=1)
        limits = {"max_tokens": 12}
        write_model(tmp_path / "other.h5", ModelFile(file.config, file.weights, file.codec, byte_tokenizer(), limits))
        assert run(tmp_path, "--shard", "1/2", f"output.path={tmp_path}/o/other.h5", *change) == 0
        other = tmp_path / "o" / "other.1-of-2.h5"
        said = refused(capsys, tmp_path, first, other)
        assert words in said and str(other) in said and "merge the shards of one job" in said
        other.unlink()


def test_merge_does_not_overwrite(tmp_path, capsys):
    write_job(tmp_path)
    parts = shards(tmp_path, 1)
    assert main(["merge", *parts, *parts]) == 2
    assert "exists; give another name" in capsys.readouterr().err


def test_more_shards_than_items(tmp_path, capsys):
    write_job(tmp_path)
    assert run(tmp_path, "--shard", "3/40") == 0  # item 0 is that of shard 3
    assert run(tmp_path, "--shard", "0/40") == 2
    assert "this shard has no items, the input has 11" in capsys.readouterr().err
