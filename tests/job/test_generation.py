"""Generation as a job and as a command, against a loop that computes every token from the whole sequence anew."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi4py import MPI

import astra_mpi
from astra_mpi.cli import _parser
from astra_mpi.decks.deck import load_deck
from astra_mpi.decode.sampling import Sampler
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import ModelFile, write_model
from astra_mpi.inputs.text import Tokenizer
from astra_mpi.job import runner
from astra_mpi.job.continuation import continuation
from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.ranks.signals import Interrupted
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file
from helpers.job import N_NEW, PROMPTS
from helpers.tokenizers import LETTERS, letter_tokenizer

MPIRUN = Path(sys.executable).parent / "mpirun"


def write_files(folder, config, **changes):
    """The model and a deck that goes on with PROMPTS."""
    file = model_file(config)
    settings = dict(tokenizer=letter_tokenizer(), preprocess={"max_tokens": 12, "end_tokens": []})
    settings |= changes
    write_model(folder / "model.h5", ModelFile(config, file.weights, file.codec, **settings))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in PROMPTS))
    (folder / "deck.toml").write_text(
        '[model]\npath = "model.h5"\n[input]\npath = "prompts.jsonl"\nkind = "text"\n'
        f'[task]\nname = "generate"\nmax_new_tokens = {N_NEW}\n[run]\nbatch = 3\n[output]\npath = "out.h5"\n'
    )


@pytest.fixture
def folder(comm, tmp_path):
    """Rank 0's temporary folder with a model and a deck."""
    shared = Path(broadcast_text(comm, str(tmp_path)))
    if comm.rank == 0:
        write_files(shared, gpt2_config())
    comm.Barrier()
    return shared


def execute(comm, folder, *overrides, model=None):
    """-> (summary, tokens, texts) of the deck, on every rank."""
    comm.Barrier()
    deck = load_deck(folder / "deck.toml", ["run.resume=false", *overrides])
    model = model or load(comm, folder, deck.parallel.spec)
    summary = runner.run(deck, model, comm)
    with h5py.File(deck.output.path, locking=False) as file:
        texts = file["outputs/text"].asstr()[()].tolist() if "outputs/text" in file else None
        tokens = file["outputs/tokens"][()]
        assert file["outputs/n_tokens"][()].tolist() == (tokens >= 0).sum(axis=1).tolist()
    comm.Barrier()
    return summary, tokens, texts


def load(comm, folder, strategy):
    return astra_mpi.load(str(folder / "model.h5"), comm=comm, strategy=strategy)


def prompt_ids():
    return Tokenizer(letter_tokenizer(), open_ended=True).encode(PROMPTS, 99)


def recomputed(folder, prompts, sampler, stop=(), n_new=N_NEW):
    """Tokens (N, n_new): every one from a whole forward pass on one rank."""
    model = load(MPI.COMM_SELF, folder, "single")
    rows = np.full((len(prompts), n_new), -1)
    for i, prompt in enumerate(prompts):
        ids = prompt.tolist()
        for step in range(min(n_new, model.config.max_positions - len(prompt))):
            rows[i, step] = sampler(model(np.array([ids])), np.array([i]), step)[0]
            ids.append(rows[i, step])
            if rows[i, step] in stop:
                break
    return rows


@pytest.mark.mpi
@pytest.mark.parametrize("make", [gpt2_config, llama_config])
def test_greedy_job(comm, folder, make):
    if comm.rank == 0:
        write_files(folder, make())
    summary, tokens, texts = execute(comm, folder, "parallel.strategy=sp")
    np.testing.assert_array_equal(tokens, recomputed(folder, prompt_ids(), Sampler()))
    tokenizer = Tokenizer(letter_tokenizer())
    assert texts == [continuation(tokenizer, ids, row) for ids, row in zip(prompt_ids(), tokens, strict=True)]
    metrics = summary["metrics"]
    assert metrics["new_tokens"] == N_NEW * len(PROMPTS) and metrics["ended"] == {"length": len(PROMPTS)}
    assert summary["tokens"] == sum(map(len, prompt_ids())) and len(metrics["cache_bytes"]) == comm.size
    assert metrics["per_token_s"] > 0 and metrics["first_token_s"] > 0 and metrics["tokens_per_s"] > 0
    assert max(metrics["cache_bytes"]) <= metrics["full_cache_bytes"]


@pytest.mark.mpi
def test_drawn_tokens_depend_on_neither_batch_nor_ranks_nor_shards(comm, folder):
    options = ["parallel.strategy=sp", "task.temperature=1.5", "task.top_k=20", "task.top_p=0.95", "run.seed=5"]
    expected = recomputed(folder, prompt_ids(), Sampler(1.5, 20, 0.95, seed=5))
    for batch in (1, 3, 8):
        _, tokens, _ = execute(comm, folder, *options, f"run.batch={batch}")
        np.testing.assert_array_equal(tokens, expected)
    for shard in (0, 1):
        some = [f"input.shard={shard}/2", "input.shard_by=strided", f"output.path={folder}/s{shard}.h5"]
        _, tokens, _ = execute(comm, folder, *options, *some)
        np.testing.assert_array_equal(tokens, expected[shard::2])
    _, other, _ = execute(comm, folder, *options, "run.seed=6")
    assert (other != expected).any()


@pytest.mark.mpi
def test_stopped_job_goes_on_to_the_same_bits(comm, folder):
    options = ["parallel.strategy=astra", "task.temperature=1", "run.seed=5", "run.resume=true"]
    model = load(comm, folder, "astra")
    whole = execute(comm, folder, *options, f"output.path={folder}/whole.h5", model=model)
    calls, generate = [], model.generate

    def interrupted(*args, **settings):
        calls.append(1)
        if len(calls) == 2 and comm.rank == comm.size - 1:
            signal.raise_signal(signal.SIGINT)
        return generate(*args, **settings)

    model.generate = interrupted
    with pytest.raises(Interrupted, match="after batch 2"):
        execute(comm, folder, *options, model=model)
    again = execute(comm, folder, *options, model=model)
    assert len(calls) == 3
    np.testing.assert_array_equal(again[1], whole[1])
    assert again[2] == whole[2]


@pytest.mark.mpi
def test_stop_tokens(comm, folder):
    """Ids, strings that are one token, and the model's own, unless they are ignored."""
    free = recomputed(folder, prompt_ids(), Sampler(1.5, seed=1))
    own, named, letter = (int(free[i, 3]) for i in (0, 1, 2))
    while letter in (0, 1) or letter >= len(LETTERS) + 2:  # one with a name
        letter = int(np.random.default_rng(letter).integers(2, len(LETTERS) + 2))
    preprocess = {"max_tokens": 12, "end_tokens": [own]}
    if comm.rank == 0:
        write_files(folder, gpt2_config(), preprocess=preprocess)
    options = ["parallel.strategy=sp", "task.temperature=1.5", "run.seed=1"]
    stop = f"task.stop=[{named}, {json.dumps(LETTERS[letter - 2])}]"
    summary, tokens, _ = execute(comm, folder, *options, stop)
    expected = recomputed(folder, prompt_ids(), Sampler(1.5, seed=1), (own, named, letter))
    np.testing.assert_array_equal(tokens, expected)
    assert summary["metrics"]["ended"]["stop"] >= 2
    _, tokens, _ = execute(comm, folder, *options, "task.ignore_end=true", stop)
    np.testing.assert_array_equal(tokens, recomputed(folder, prompt_ids(), Sampler(1.5, seed=1), (named, letter)))


@pytest.mark.mpi
@pytest.mark.parametrize("decode", ["local", "merged"])
def test_a_stop_text_of_several_tokens(comm, folder, decode):
    """It ends a prompt's text with the token that completes it, in a batch whose others go on."""
    free, tokenizer = recomputed(folder, prompt_ids(), Sampler(1.5, seed=1)), Tokenizer(letter_tokenizer())
    stop = tokenizer.decode(free[0])[1:4]
    assert len(stop) == 3
    expected = free.copy()
    for row in expected:
        n = next((n for n in range(1, len(row) + 1) if stop in tokenizer.decode(row[:n])), len(row))
        row[n:] = -1
    options = ["parallel.strategy=sp", "task.temperature=1.5", "run.seed=1", f"task.decode={decode}"]
    summary, tokens, texts = execute(comm, folder, *options, f"task.stop={json.dumps(stop)}")
    np.testing.assert_array_equal(tokens, expected)
    assert texts[0].endswith(stop) and summary["metrics"]["ended"]["stop"] == (expected[:, -1] < 0).sum()


@pytest.mark.mpi
def test_token_ids_with_gaps_before_and_between(comm, folder):
    """As transformers pads prompts, on the left: what is left out leaves no gap."""
    ids = np.random.default_rng(0).integers(0, 53, (4, 12))
    mask = np.random.default_rng(1).random((4, 12)) < 0.6
    if comm.rank == 0:
        write_files(folder, gpt2_config(), tokenizer=None)
        np.savez(folder / "in.npz", tokens=ids, mask=mask)
    options = [f"input.path={folder}/in.npz", "input.kind=tokens", "input.mask=mask", "parallel.strategy=sp"]
    _, tokens, texts = execute(comm, folder, *options)
    prompts = [row[keep] for row, keep in zip(ids, mask, strict=True)]
    np.testing.assert_array_equal(tokens, recomputed(folder, prompts, Sampler()))
    assert texts is None


@pytest.mark.mpi
def test_whole_file_as_a_prompt_and_a_cut_one(comm, folder):
    if comm.rank == 0:
        (folder / "text.txt").write_text("a cab\n\nof lions")
    options = [f"input.path={folder}/text.txt", "parallel.strategy=sp"]
    tokenizer = Tokenizer(letter_tokenizer(), open_ended=True)
    for extra, n in ([], 99), (["input.max_tokens=6"], 6):
        _, tokens, _ = execute(comm, folder, *options, "input.whole=true", *extra)
        prompts = tokenizer.encode(["a cab\n\nof lions"], n)
        np.testing.assert_array_equal(tokens, recomputed(folder, prompts, Sampler()))
    _, tokens, _ = execute(comm, folder, *options)
    assert len(tokens) == 2  # a line each


@pytest.mark.mpi
def test_sequences_end_at_the_last_position(comm, folder):
    summary, tokens, _ = execute(comm, folder, "task.max_new_tokens=30", "parallel.strategy=sp")
    np.testing.assert_array_equal(tokens, recomputed(folder, prompt_ids(), Sampler(), n_new=30))
    n_long = sum(len(ids) + 30 > 40 for ids in prompt_ids())
    assert summary["metrics"]["ended"] == {"length": len(PROMPTS) - n_long, "positions": n_long} and n_long


@pytest.mark.mpi
def test_watchdog_lets_one_rank_decode_alone_for_long(comm, folder):
    """Longer than the limit in all, not in any step: the others wait for its last token."""
    expected = recomputed(folder, prompt_ids()[:1], Sampler(), n_new=8)
    model = astra_mpi.load(str(folder / "model.h5"), comm=comm, strategy="sp", watchdog="3s")

    def slow(logits, sequences, step):
        time.sleep(0.6)
        return logits.argmax(axis=1)

    tokens = model.generate(prompt_ids()[0][None], max_new_tokens=8, sample=slow, decode="local")
    np.testing.assert_array_equal(tokens, expected)


def test_zero_bytes_do_not_end_a_text(tmp_path):
    """HDF5 keeps strings up to their first zero byte."""
    from astra_mpi.job.generation import outputs

    vocab = {"a": 0, "\0": 1}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    tokenizer = Tokenizer(json.dumps({"version": "1.0", "decoder": {"type": "Fuse"}, "model": model}))
    kept = outputs(np.array([[0, 1, 0, -1]]), [np.array([0])], tokenizer)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["text"] = kept["text"]
        assert file["text"].asstr()[()].tolist() == ["a\ufffda"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.max_new_tokens=0"], r"task\.max_new_tokens = 0 does not fit; give a positive integer"),
        (["task.top_p=0"], r"top_p = 0\.0: above 0 and at most 1"),
        (["task.temperature=-1"], "temperature = -1: give 0 for the most likely token"),
        (["task.top_k=4"], "need a temperature above 0"),
        (["task.stop=[53]"], r"task\.stop: token 53 is outside 0\.\.52"),
        (["task.stop=[3, '']"], "a stop text is empty"),
        (["task.decode=both"], r"task\.decode = 'both' does not fit"),
        (["task.stream=true"], r"task\.stream = true prints one text at a time; give run\.batch = 1"),
        (["input.max_tokens=1"], "leaves no room beside 1 special tokens"),
        (["input.path={folder}/long.txt"], r"long\.txt: the prompt of item 1 fills this model's 40 positions"),
        (["input.path={folder}/in.npz", "input.kind=tokens", "input.mask=n"], r"in\.npz: item 2 is an empty prompt"),
        (["input.path={folder}/in.npz", "input.kind=tokens"], r"token id 53 \(item 1, position 3\) is outside 0\.\.52"),
        (["parallel.strategy=tp"], "strategy tp does not generate"),
        (["task.name=embed"], "a gpt2 model; give perplexity or generate"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, overrides, said):
    write_files(tmp_path, gpt2_config())
    (tmp_path / "long.txt").write_text(f"ab\n{'a' * 39}\n")
    ids = np.zeros((3, 6), int)
    ids[1, 3] = 53
    np.savez(tmp_path / "in.npz", tokens=ids, n=[2, 3, 0])
    with pytest.raises(InputError, match=said):
        deck = load_deck(tmp_path / "deck.toml", [text.format(folder=tmp_path) for text in overrides])
        runner.run(deck, load(MPI.COMM_SELF, tmp_path, deck.parallel.spec), MPI.COMM_SELF)


def test_deck_without_a_number_of_tokens(tmp_path):
    write_files(tmp_path, gpt2_config())
    deck = (tmp_path / "deck.toml").read_text().replace(f"max_new_tokens = {N_NEW}", "")
    (tmp_path / "deck.toml").write_text(deck)
    with pytest.raises(InputError, match=r"task\.max_new_tokens is missing"):
        runner.run(load_deck(tmp_path / "deck.toml"), load(MPI.COMM_SELF, tmp_path, "single"), MPI.COMM_SELF)


def test_tokenizer_of_another_model(tmp_path):
    """At use; `convert` refuses it as well."""
    write_files(tmp_path, gpt2_config(vocab_size=20))
    with pytest.raises(InputError, match=r"has ids up to 20 .* the vocabulary ends at 19"):
        runner.run(load_deck(tmp_path / "deck.toml"), load(MPI.COMM_SELF, tmp_path, "single"), MPI.COMM_SELF)


# --- the commands ----------------------------------------------------------------------------------------------------


def command(n_ranks, *arguments, code=0):
    full = [MPIRUN, "-n", n_ranks, sys.executable, "-m", "astra_mpi", *arguments]
    done = subprocess.run([str(x) for x in full], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_command(tmp_path):
    """Prompt and text on stdout, the same as the job's; times and bytes on stderr."""
    write_files(tmp_path, gpt2_config())
    sampling = ["--temperature", 1.5, "--seed", 5, "--max-new-tokens", 7]
    out, err = command(2, "generate", tmp_path / "model.h5", "a cab", *sampling, "--strategy", "sp",
                       "--json", tmp_path / "out.json")  # fmt: skip
    tokens = recomputed(tmp_path, prompt_ids()[:1], Sampler(1.5, seed=5), n_new=7)[0]
    text = continuation(Tokenizer(letter_tokenizer()), prompt_ids()[0], tokens)
    assert out == f"a cab{text}\n"
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["text"] == text and told["tokens"] == tokens.tolist() and told["prompt"] == "a cab"
    assert "sp on 2 ranks, decode " in err and ": 6 + 7 tokens, ended by length" in err
    assert "first token " in err and " ms per token " in err and "bytes contributed: prefill " in err


def test_drafts_of_job_and_command(tmp_path):
    """By a model, here the same one, and by look-up: the tokens are those without, and figures of drafts are told."""
    write_files(tmp_path, gpt2_config())
    want = recomputed(tmp_path, prompt_ids(), Sampler())
    draft = [f"task.draft={tmp_path / 'model.h5'}", "task.draft_tokens=4"]
    out, _ = command(2, "run", tmp_path / "deck.toml", *draft, "parallel.strategy=sp", "task.decode=merged")
    with h5py.File(tmp_path / "out.h5") as file:
        assert np.array_equal(file["outputs/tokens"][()], want)
    drafts = json.loads(out.splitlines()[-1])["metrics"]["drafts"]
    assert drafts["from"].startswith("model ") and drafts["accepted"] == drafts["drafted"]
    assert drafts["checks"] + drafts["accepted"] == want.size - len(want)
    options = ["--max-new-tokens", N_NEW, "--strategy", "sp", "--draft", "lookup", "--json", tmp_path / "out.json"]
    out, err = command(2, "generate", tmp_path / "model.h5", PROMPTS[0], *options)
    told = json.loads((tmp_path / "out.json").read_text())
    drafts = told["report"]["generation"]["drafts"]
    assert told["tokens"] == want[0].tolist() and drafts["from"] == "lookup" and drafts["checks"] > 0
    assert " per pass: " in err and " drafts right" in err


def test_job_that_prints_as_it_goes(tmp_path):
    """The text on stderr; the last line on stdout is the summary."""
    write_files(tmp_path, llama_config())
    out, err = command(2, "run", tmp_path / "deck.toml", "task.stream=true", "run.batch=1", "parallel.strategy=sp")
    summary = json.loads(out.splitlines()[-1])
    with h5py.File(tmp_path / "out.h5") as file:
        texts = file["outputs/text"].asstr()[()]
    assert summary["metrics"]["new_tokens"] == N_NEW * len(PROMPTS)
    assert "".join(f"{prompt}{text}\n" for prompt, text in zip(PROMPTS, texts, strict=True)) in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_job_goes_on_where_stderr_is_full(tmp_path):
    write_files(tmp_path, llama_config())
    words = [sys.executable, "-m", "astra_mpi", "run", "deck.toml", "task.stream=true", "run.batch=1"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=full, text=True, timeout=120)
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1])["metrics"]["new_tokens"] == N_NEW * len(PROMPTS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give a prompt, or --prompt-file FILE"),
        (["a", "--prompt-file", "{folder}/p.txt"], "not both"),
        (["--prompt-file", "{folder}/none.txt"], r"none\.txt cannot be read"),
        (["a" * 39], "the prompt fills this model's 40 positions"),
        (["a", "--top-p", "1.2"], "top_p = 1.2: above 0 and at most 1"),
        (["a", "--temperature", "-1"], "temperature = -1"),
        (["a", "--temperature", "0", "--top-k", "3"], "need a temperature above 0"),
        (["a", "--max-new-tokens", "0"], "--max-new-tokens 0: at least 1"),
        (["a", "--decode", "both"], "--decode both is unknown; use one of auto, local, merged"),
        (["a", "--stop", ""], "a stop text is empty"),
        (["a", "--strategy", "tp"], "strategy tp does not generate"),
    ],
)
def test_what_the_command_refuses(tmp_path, options, said):
    write_files(tmp_path, gpt2_config())
    args = _parser().parse_args(
        ["generate", f"{tmp_path}/model.h5", *(text.format(folder=tmp_path) for text in options)]
    )
    with pytest.raises(InputError, match=said):
        args.run(args, MPI.COMM_SELF)


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (gpt2_config(), dict(tokenizer=letter_tokenizer(begin=False)), "the prompt is empty"),
        (gpt2_config(), dict(tokenizer=None), "holds no tokenizer"),
        (bert_config(), {}, "a bert model generates no text; give a decoder, such as Llama"),
    ],
)
def test_models_and_prompts_that_the_command_refuses(tmp_path, config, changes, said):
    write_files(tmp_path, config, **changes)
    args = _parser().parse_args(["generate", f"{tmp_path}/model.h5", ""])
    with pytest.raises(InputError, match=said):
        args.run(args, MPI.COMM_SELF)


def test_begin_token_is_a_prompt(tmp_path, capsys):
    """An empty text of a tokenizer that begins texts itself."""
    write_files(tmp_path, llama_config())
    args = _parser().parse_args(["generate", f"{tmp_path}/model.h5", "", "--max-new-tokens", "3"])
    assert args.run(args, MPI.COMM_SELF) == 0
    tokens = recomputed(tmp_path, [np.array([0])], Sampler(), n_new=3)[0]
    assert capsys.readouterr().out == Tokenizer(letter_tokenizer()).decode(tokens) + "\n"
