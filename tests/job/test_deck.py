"""Decks: defaults, overrides, paths, and an error that names key, origin and cure for every mistake."""

import json
from pathlib import Path

import pytest

from astra_mpi.decks.deck import Deck, load_deck
from astra_mpi.errors import InputError

DECK = """
[model]
path = "models/m.h5"
[input]
path = "in.txt"
kind = "text"
[task]
name = "embed"
[output]
path = "out.h5"
"""


def write(folder: Path, text: str = DECK) -> Path:
    path = folder / "deck.toml"
    path.write_text(text)
    return path


def test_defaults_and_paths(tmp_path):
    deck = load_deck(write(tmp_path))
    assert deck.model.path == tmp_path / "models/m.h5"
    assert deck.output.path == tmp_path / "out.h5"
    assert (deck.parallel.strategy, deck.parallel.weights, deck.run.batch, deck.run.resume) == (
        "auto",
        "even",
        8,
        True,
    )
    assert deck.input.max_tokens is None and deck.task.pooling is None


def test_deck_path_relative_to_current_folder(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load_deck("deck.toml").model.path == tmp_path / "models/m.h5"


def test_dict_has_every_default_and_reads_back(tmp_path):
    deck = load_deck(write(tmp_path), ["parallel.weights=[1, 2.5]", 'input.dataset=["a", "b"]', "run.threads=2"])
    settings = json.loads(json.dumps(deck.as_dict()))
    assert settings["run"] == {"batch": 8, "resume": True, "seed": 0, "threads": 2, "watchdog": "300s"}
    assert settings["parallel"]["weights"] == [1.0, 2.5]
    assert Deck.from_dict(settings) == deck


def test_overrides(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    deck = load_deck(
        write(tmp_path), ["model.path=other.h5", "run.batch=3", "run.resume=false", "task.pooling=cls", "output.path=7"]
    )
    assert deck.model.path == tmp_path / "elsewhere" / "other.h5"
    assert deck.output.path == tmp_path / "elsewhere" / "7"  # a bare word, though it reads as a number
    assert deck.input.path == tmp_path / "in.txt"
    assert (deck.run.batch, deck.run.resume, deck.task.pooling) == (3, False, "cls")


@pytest.mark.parametrize(
    ("overrides", "spec"),
    [
        ([], "auto"),
        (["parallel.strategy=sp"], "sp"),
        (["parallel.strategy=sp:int8:kv"], "sp:kv:int8"),
        (["parallel.strategy=sp", "parallel.gather=kv", "parallel.wire=float16"], "sp:kv:float16"),
        (["parallel.strategy=sp:kv", "parallel.gather=kv"], "sp:kv"),
        (["parallel.strategy=tp"], "tp"),
        (["parallel.strategy=segment_means"], "segment_means:8"),
        (["parallel.strategy=segment_means", "parallel.ratio=4"], "segment_means:4"),
        (["parallel.first=inputs"], "auto:inputs"),
        (["parallel.strategy=astra", "parallel.gather=kv"], "astra"),  # of another strategy: left aside
    ],
)
def test_strategy_and_the_keys_beside_it(tmp_path, overrides, spec):
    assert load_deck(write(tmp_path), overrides).parallel.spec == spec


@pytest.mark.parametrize(
    ("text", "value"),
    [(".", "."), ("13", 13), ("'13'", "13"), ("[1, '.']", (1, ".")), ("</s>", "</s>")],
)
def test_stop_is_ids_and_strings(tmp_path, text, value):
    deck = load_deck(write(tmp_path), [f"task.stop={text}"])
    assert deck.task.stop == value and Deck.from_dict(json.loads(json.dumps(deck.as_dict()))) == deck


def test_strategy_and_keys_that_contradict_it(tmp_path):
    path = write(tmp_path, DECK + '[parallel]\nstrategy = "sp:kv"\n')
    assert load_deck(path).parallel.spec == "sp:kv"
    with pytest.raises(InputError, match=r"deck\.toml: parallel\.strategy: .*gather = 'x' contradict each other"):
        load_deck(path, ["parallel.gather=x"])


def test_override_completes_a_deck(tmp_path):
    path = write(tmp_path, DECK.replace('name = "embed"', ""))
    assert load_deck(path, ["task.name=classify"]).task.name == "classify"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.bach=3", ["command line", "'bach'", "'batch'"]),
        ("runn.batch=3", ["command line", "'runn'", "'run'"]),
        ("run.batch", ["run.batch", "section.key=value"]),
        ("run.batch=0", ["run.batch", "0", "a positive integer"]),
        ("run.batch=2.0", ["run.batch", "2.0", "a positive integer"]),
        ("run.batch=true", ["run.batch", "a positive integer"]),
        ("run.resume=1", ["run.resume", "true or false"]),
        ("run.seed=x", ["run.seed", "'x'", "an integer"]),
        ("parallel.weights=[1, 'a']", ["parallel.weights", '"even"', "a list of numbers"]),
        ("parallel.weights=[]", ["parallel.weights", "a list of numbers"]),
        ("parallel.weights=fair", ["parallel.weights", '"auto"', "a list of numbers"]),
        ("parallel.strategy=astro", ["command line: parallel.strategy", "'astro'", "astra", "sp[:x|kv]"]),
        ("parallel.strategy=sp:int9", ["command line: parallel.strategy", "'int9'", "float32|float16|int8"]),
        ("parallel.strategy=[1]", ["parallel.strategy", "'[1]'"]),
        ("parallel.strategy=bp:sp", ["parallel.strategy", "'bp:sp'", "astra-mpi bench", "latency only"]),
        ("parallel.ratio=0", ["parallel.ratio", "a positive integer"]),
        ("parallel.wire=int4", ["parallel.wire", "'int4'", '"int8"']),
        ("task.name=train", ["task.name", "does not fit", '"generate"']),
        ("task.max_new_tokens=0", ["task.max_new_tokens", "0", "a positive integer"]),
        ("task.top_p=x", ["task.top_p", "a number"]),
        ("task.decode=both", ["task.decode", "'both'", '"local" or "merged"']),
        ("task.name=[1]", ["task.name", '"classify"']),
    ],
)
def test_bad_override(tmp_path, override, words):
    with pytest.raises(InputError) as caught:
        load_deck(write(tmp_path), [override])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DECK + "patth = 1", ["deck.toml", "'patth'", "'path'", "[output]"]),
        (DECK + "[ouput]", ["deck.toml", "unknown section", "'output'"]),
        (DECK + "[run]\nthreads = false", ["deck.toml", "run.threads", "a positive integer"]),
        (DECK + "[run]\nzzzz = 1", ["'zzzz'", "batch, resume"]),
        ("run = 3", ["deck.toml", "[run]"]),
        (DECK.replace('kind = "text"', ""), ["deck.toml", "input.kind is missing", '"images"']),
        (DECK.replace('"in.txt"', "3"), ["input.path", "a path"]),
        (DECK + "= 3", ["deck.toml", "not valid TOML"]),
        (DECK.replace("[task]", "[task]\nstop = [1.5]"), ["task.stop", "a list, each an integer or a string"]),
    ],
)
def test_bad_deck(tmp_path, text, words):
    with pytest.raises(InputError) as caught:
        load_deck(write(tmp_path, text))
    for word in words:
        assert word in str(caught.value)


def test_unreadable_deck(tmp_path):
    with pytest.raises(InputError, match=r"missing\.toml.*check the path"):
        load_deck(tmp_path / "missing.toml")
    (tmp_path / "latin.toml").write_bytes(b'x = "\xe9"')
    with pytest.raises(InputError, match=r"latin\.toml: not UTF-8 at byte 5"):
        load_deck(tmp_path / "latin.toml")
