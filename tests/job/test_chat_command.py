"""Chat as commands and as a job: lines in, answers out, against generation of each whole conversation anew."""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi4py import MPI

import astra_mpi
from astra_mpi.cli import _parser
from astra_mpi.codec.config import CodecConfig
from astra_mpi.decks.deck import load_deck
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import ModelFile, write_model
from astra_mpi.inputs.chat import ChatTemplate
from astra_mpi.inputs.text import Tokenizer
from astra_mpi.job import runner
from astra_mpi.job.continuation import StopTexts, TextStream, continuation
from astra_mpi.ranks.broadcast import broadcast_text
from helpers.chat_templates import MISTRAL, SMOLLM2
from helpers.fakes import llama_config, model_file
from helpers.processes import MPIRUN, outside
from helpers.tokenizers import byte_pairs, chat_tokenizer

SYSTEM = "be quick"
LINES = ["the fox jumps over é 語 😀", "/help", "a dog?", "it rains in spain"]


@pytest.fixture(autouse=True)
def _few(comm):
    if comm.size > 3:
        pytest.skip("three ranks show what more would")


def write_files(folder, template=SMOLLM2, max_positions=600, **changes):
    tokenizer = chat_tokenizer()
    config = llama_config(vocab_size=tokenizer.get_vocab_size(), max_positions=max_positions)
    file = model_file(config, CodecConfig(site="kv", stages=2, codebook_size=8))
    end = tokenizer.token_to_id("<|im_end|>")
    preprocess = {"max_tokens": 600, "end_tokens": [end], "chat_template": template}
    preprocess |= {"special_tokens": {"bos_token": "<s>", "eos_token": "<|im_end|>"}}
    settings = dict(tokenizer=tokenizer.to_str(), preprocess=preprocess) | changes
    write_model(folder / "model.h5", ModelFile(config, file.weights, file.codec, **settings))


@pytest.fixture
def folder(comm, tmp_path):
    """Rank 0's temporary folder with a model that can be talked to."""
    shared = Path(broadcast_text(comm, str(tmp_path)))
    if comm.rank == 0:
        write_files(shared)
    comm.Barrier()
    return shared


def talk(comm, monkeypatch, folder, lines, *options):
    """`astra-mpi chat` on these ranks -> (stdout, stderr, JSON) on every rank."""
    given = "".join(line + "\n" for line in lines).encode(errors="surrogateescape")
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    try:
        words = ["chat", str(folder / "model.h5"), "--json", str(folder / "out.json"), *options]
        args = _parser().parse_args(words)
        assert args.run(args, comm) == 0
    finally:
        monkeypatch.undo()
    found = json.loads((folder / "out.json").read_text()) if comm.rank == 0 else None
    return comm.bcast((out.getvalue(), err.getvalue(), found))


def whole_answers(folder, lines, n_new, stop=()):
    """Texts of greedy answers, each of one rank's `generate` from the whole conversation."""
    model = astra_mpi.load(str(folder / "model.h5"), comm=MPI.COMM_SELF, strategy="single")
    template, tokenizer = ChatTemplate(model.preprocess), Tokenizer(model.tokenizer)
    stops = StopTexts(tokenizer, stop)
    messages, texts = [{"role": "system", "content": SYSTEM}], []
    for line in lines:
        messages.append({"role": "user", "content": line})
        ids = tokenizer.encode_plain(template.render(messages), "x")
        ends = model.preprocess["end_tokens"]
        new = model.generate(ids[None], max_new_tokens=n_new, stop=ends, ends=stops if stop else None)[0]
        texts.append(stops.cut(continuation(tokenizer, ids, new[(new >= 0) & ~np.isin(new, ends)])))
        messages.append({"role": "assistant", "content": texts[-1]})
    return texts


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", ["sp", "single", "astra"])
def test_answers_are_those_of_whole_conversations(comm, folder, monkeypatch, strategy):
    options = ["--system", SYSTEM, "--strategy", strategy, "--max-new-tokens", "9"]
    said, noted, turns = talk(comm, monkeypatch, folder, LINES, *options)
    assert said == "".join(turn["text"] + "\n" for turn in turns) and len(turns) == 3
    if strategy != "astra" or comm.size == 1:
        assert [turn["text"] for turn in turns] == whole_answers(folder, [LINES[0], *LINES[2:]], 9)
    read = [turn["prompt_tokens"] for turn in turns]
    kept = [turn["kept_tokens"] for turn in turns]
    assert kept[0] == 0 < kept[1] < kept[2] and kept[1] >= read[0] and turns[1]["first_token_s"] > 0
    assert noted.count("first token") == 3 and noted.count("tokens/s") == 3 and "/new forgets" in noted


@pytest.mark.mpi
def test_drafts_change_no_answer(comm, folder, monkeypatch):
    options = ["--system", SYSTEM, "--strategy", "sp", "--max-new-tokens", "9", "--temperature", "0.5"]
    said, _, turns = talk(comm, monkeypatch, folder, LINES, *options)
    again, noted, drafted = talk(comm, monkeypatch, folder, LINES, *options, "--draft", "lookup", "--draft-tokens", "4")
    assert again == said and [turn["tokens"] for turn in drafted] == [turn["tokens"] for turn in turns]
    assert noted.count("tokens per pass") == 3 and all(turn["tokens_per_pass"] >= 1 for turn in drafted)
    assert turns[0]["tokens_per_pass"] is None


@pytest.mark.mpi
def test_commands_and_bad_lines(comm, folder, monkeypatch):
    lines = ["a dog", "/new", "a dog", "", "\udcff", "long " * 300, "a fox", "/exit", "never read"]
    _, noted, turns = talk(comm, monkeypatch, folder, lines, "--max-new-tokens", "4", "--strategy", "sp")
    assert len(turns) == 3 and turns[0]["tokens"] == turns[1]["tokens"]
    assert turns[1]["kept_tokens"] == 0 < turns[2]["kept_tokens"]
    assert "not UTF-8 at byte 0" in noted and "this model 600 positions; shorten it" in noted


@pytest.mark.mpi
def test_stop_texts_of_several_tokens_end_an_answer_and_are_not_shown(comm, folder, monkeypatch):
    free = whole_answers(folder, LINES[:1], 30)[0]
    stop = free[6:9]
    want = whole_answers(folder, [LINES[0], LINES[2]], 30, [stop])
    assert want[0] == free[: free.index(stop)]
    options = ["--system", SYSTEM, "--max-new-tokens", "30", "--strategy", "sp", "--stop", stop]
    said, _, turns = talk(comm, monkeypatch, folder, [LINES[0], LINES[2]], *options)
    assert [turn["text"] for turn in turns] == want and said == "".join(text + "\n" for text in want)
    assert turns[0]["ended"] == "stop"


@pytest.mark.mpi
@pytest.mark.parametrize("where", ["first", "last"])
def test_ctrl_c_ends_the_answer_and_not_the_job(comm, folder, monkeypatch, where):
    from astra_mpi.decode.sampling import Sampler

    rank = 0 if where == "first" else comm.size - 1
    call = Sampler.__call__

    def interrupted(self, logits, sequences, step):
        if step == 3 and self.numbers == (0,):
            interrupted.on_this_rank = True
            signal.raise_signal(signal.SIGINT)
        return call(self, logits, sequences, step)

    if comm.size == 1 or rank == comm.size - 1:  # which samples
        monkeypatch.setattr(Sampler, "__call__", interrupted)
    else:
        push = TextStream.push

        def pushed(self, token):
            if len(self._ids) == 3 and not interrupted.__dict__.setdefault("done", False):
                interrupted.done = True
                signal.raise_signal(signal.SIGINT)
            return push(self, token)

        monkeypatch.setattr(TextStream, "push", pushed)
    options = ["--max-new-tokens", "40", "--strategy", "sp", "--ignore-end"]
    _, _, turns = talk(comm, monkeypatch, folder, LINES[::2], *options)
    assert turns[0]["ended"] == "interrupted" and 3 <= turns[0]["new_tokens"] <= 7
    assert turns[1]["ended"] == "length" and turns[1]["new_tokens"] == 40


@pytest.mark.mpi
def test_generate_with_one_message(comm, folder, monkeypatch):
    words = ["generate", str(folder / "model.h5"), LINES[0], "--chat", "--system", SYSTEM, "--max-new-tokens", "9"]
    args = _parser().parse_args([*words, "--strategy", "sp"])
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    assert args.run(args, comm) == 0
    monkeypatch.undo()
    want = whole_answers(folder, LINES[:1], 9)[0]
    assert comm.bcast(out.getvalue()) == want + "\n"


@pytest.mark.mpi
def test_job_of_messages(comm, folder):
    """Conversations as JSON lines, among them one with an answer of before; named by the field or found."""
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": LINES[0]}]
    more = [*asked, {"role": "assistant", "content": "no"}, {"role": "user", "content": "why?"}]
    if comm.rank == 0:
        rows = [{"messages": asked, "id": 7}, {"messages": more}]
        (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "bad.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps({"messages": [{"role": "user"}]}))
        (folder / "deck.toml").write_text(
            '[model]\npath = "model.h5"\n[input]\npath = "in.jsonl"\nkind = "text"\n'
            '[task]\nname = "generate"\nmax_new_tokens = 9\n[output]\npath = "out.h5"\n'
        )
    comm.Barrier()
    model = astra_mpi.load(str(folder / "model.h5"), comm=comm, strategy="sp")
    texts = []
    for extra in ([], ["input.dataset=messages"]):
        deck = load_deck(folder / "deck.toml", ["run.resume=false", "parallel.strategy=sp", *extra])
        runner.run(deck, model, comm)
        with h5py.File(deck.output.path, locking=False) as file:
            texts.append(file["outputs/text"].asstr()[()].tolist())
        comm.Barrier()
    assert texts[0] == texts[1] and texts[0][0] == whole_answers(folder, LINES[:1], 9)[0]
    deck = load_deck(folder / "deck.toml", [f"input.path={folder}/bad.jsonl", "parallel.strategy=sp"])
    with pytest.raises(InputError, match=r"bad\.jsonl, line 2: message 0 \(user\) has no content"):
        runner.run(deck, model, comm)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        (dict(preprocess={"max_tokens": 9}), [], "the model has no chat template, so nobody knows"),
        (dict(tokenizer=None), [], "holds no tokenizer"),
        (dict(template=MISTRAL), ["--system", "x"], "Only user and assistant roles are supported!|must alternate"),
        (dict(template={"a": "x", "b": "y"}), [], "no chat template 'default'; choose one of a, b"),
        (dict(template="{% import 'os' as os %}"), [], "another template, 'os'"),
        (dict(template="{{ 7 * '' }}"), [], "makes nothing of it"),
        ({}, ["--decode", "both"], "--decode both is unknown"),
    ],
)
def test_what_cannot_be_talked_to_says_so(comm, tmp_path, changes, options, words):
    write_files(tmp_path, **changes)
    for command in (["chat"], ["generate", "--chat"]):
        args = _parser().parse_args(
            [command[0], str(tmp_path / "model.h5"), *(command[1:] and ["a", *command[1:]]), *options]
        )
        with pytest.raises(InputError, match=words):
            args.run(args, MPI.COMM_SELF)


def test_characters_are_never_split_nor_stop_texts_begun():
    """Pieces of bytes, one by one: each piece is of whole characters, and together they are the text."""
    tokenizer = Tokenizer(byte_pairs())
    text = "né 語😀 the END. more"
    ids = tokenizer.encode_plain(text, "x")
    prompt = tokenizer.encode_plain("so", "x")
    pieces = [TextStream(tokenizer, prompt)]
    stream, shown = pieces[0], []
    for token in ids:
        shown.append(stream.push(int(token)))
    shown.append(stream.finish())
    assert "".join(shown) == text and "\ufffd" not in "".join(shown) and len([s for s in shown if s]) > 9
    stops = StopTexts(tokenizer, ["END.", "ENDE"])
    stream, shown = TextStream(tokenizer, prompt, stops), []
    for n, token in enumerate(ids, 1):
        shown.append(stream.push(int(token)))
        assert "E" not in "".join(shown)
        if stops(ids[:n]):
            break
    assert n < len(ids) and "".join(shown) + stream.finish() == "né 語😀 the "


def launched(folder, **pipes):
    """`mpirun -n 2 astra-mpi chat` with long answers, ended after a while."""
    write_files(folder, max_positions=4000)
    options = [
        "--max-new-tokens",
        "3000",
        "--strategy",
        "sp",
        "--ignore-end",
        "--temperature",
        "1",
        "--json",
        str(folder / "out.json"),
    ]
    words = [MPIRUN, "-n", "2", sys.executable, "-m", "astra_mpi", "chat", str(folder / "model.h5"), *options]
    job = subprocess.Popen(words, env=outside(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **pipes)
    threading.Timer(40, job.kill).start()
    return job


def test_a_launched_chat_lives_on_after_ctrl_c_in_its_terminal(tmp_path):
    """As often as it is pressed: under a launcher that would end the job at the second one."""
    if MPIRUN is None:
        pytest.skip("no mpirun")
    mine, its = os.openpty()
    before = termios.tcgetattr(its)
    ours = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # noqa: E731
    job = launched(tmp_path, stdin=its, start_new_session=True, preexec_fn=ours)
    try:
        for _ in range(3):
            os.write(mine, b"a dog\n")
            assert job.stdout.read(1)
            os.write(mine, b"\x03")
            while job.stdout.read(1) != b"\n":
                pass
        os.write(mine, b"/exit\n")
        job.communicate()
        assert job.returncode == 0 and termios.tcgetattr(its) == before
    finally:
        job.kill()
        os.close(mine)
        os.close(its)
    turns = json.loads((tmp_path / "out.json").read_text())
    assert [turn["ended"] for turn in turns] == ["interrupted"] * 3
