"""Standard output that is closed, full, left by its reader or of few characters; text that is not Unicode."""

import dataclasses
import json
import subprocess
import sys

import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.decks.deck import load_deck
from astra_mpi.errors import InputError, ReaderGone
from astra_mpi.files.modelfile import write_model
from astra_mpi.files.utf8 import argument_text, undecodable
from astra_mpi.inputs.kinds import kind_of
from astra_mpi.inputs.records import Records
from astra_mpi.ranks.terminal import _Output, raise_if_lost
from helpers.fakes import gpt2_config, model_file
from helpers.processes import MPIRUN, astra, outside, own_lines

FULL = "astra-mpi: error: standard output cannot be written (No space left on device); part of it is lost\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A decoder of 512 positions whose tokenizer knows every byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(letters))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    file = model_file(gpt2_config(vocab_size=256, max_positions=512), CodecConfig("normed", stages=1, codebook_size=16))
    path = tmp_path_factory.mktemp("model") / "m.h5"
    write_model(path, dataclasses.replace(file, tokenizer=tokenizer.to_str()))
    return path


def shell(line, *arguments, **environment):
    """`line` in bash, where "$@" is `astra-mpi ARGUMENTS`."""
    words = ["bash", "-c", line, "bash", sys.executable, "-m", "astra_mpi", *map(str, arguments)]
    return subprocess.run(words, env=outside(**environment), capture_output=True, timeout=60)


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["info", "M"],
        ["plan", "M", "-n", "2", "--bandwidth", "10Mbps", "--json", "-"],
        ["bench", "M", "--repeats", "1", "--warmup", "0", "--strategies", "single", "--json", "-"],
    ],
    ids=lambda words: words[0],
)
def test_full(command, model):
    done = shell('"$@" > /dev/full', *[str(model) if word == "M" else word for word in command])
    told = [line for line in done.stderr.decode().splitlines(True) if line.startswith("astra-mpi: error")]
    assert done.returncode == 3 and told == [FULL] and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [["--help"], ["info", "M"], ["generate", "M", "Hi", "--max-new-tokens", "400"]],
    ids=lambda words: words[0],
)
def test_left_by_its_reader(command, model):
    done = shell('"$@" | true; echo ${PIPESTATUS[0]}', *[str(model) if word == "M" else word for word in command])
    assert done.stdout == b"141\n" and done.stderr == b""


@pytest.mark.parametrize(
    "closed, shown", [(">&-", False), ("2>&-", True), (">&- 2>&- <&-", False), ("2> /dev/full", True)]
)
def test_streams_that_are_closed(closed, shown, model):
    before = model.read_bytes()
    done = shell(f'"$@" {closed}', "info", model)
    assert done.returncode == 0 and done.stderr == b"" and (b"gpt2" in done.stdout) is shown
    assert model.read_bytes() == before


def test_error_that_cannot_be_told():
    assert shell('"$@" 2> /dev/full', "info", "none.h5").returncode == 2


RANK_0_WITHOUT_OUTPUT = """
import os, sys
from astra_mpi.ranks.launch import launched_rank
if launched_rank() == 0:
    read, write = os.pipe()
    os.close(read)
    os.dup2({how}, 1)
from astra_mpi.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("how, code", [("write", 141), ("os.open('/dev/full', os.O_WRONLY)", 3)])
def test_output_of_rank_0_ends_all_ranks(how, code, model):
    """Long before 400 tokens are made of one."""
    if MPIRUN is None:
        pytest.skip("no mpirun")
    words = [MPIRUN, "-n", "2", sys.executable, "-c", RANK_0_WITHOUT_OUTPUT.format(how=how)]
    arguments = ["generate", str(model), "Hi", "--max-new-tokens", "400"]
    done = subprocess.run([*words, *arguments], env=outside(), capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert own_lines(done) == ([] if code == 141 else [FULL.strip()])
    assert "tokens/s" not in done.stderr


def test_reader_of_mpirun_that_leaves(model):
    if MPIRUN is None:
        pytest.skip("no mpirun")
    words = ["generate", model, "Hi", "--max-new-tokens", "400"]
    done = shell(f'{MPIRUN} -n 2 "$@" | head -c 2; echo " ${{PIPESTATUS[0]}}"', *words)
    text, code = done.stdout.split()
    assert text == b"Hi" and int(code) != 3 and b"Traceback" not in done.stderr and b"Exception" not in done.stderr


def test_text_beyond_the_encoding(model):
    words = ("generate", model, "é", "--max-new-tokens", 1)
    ascii_only = shell('"$@"', *words, PYTHONIOENCODING="ascii")
    assert ascii_only.returncode == 0 and ascii_only.stdout.startswith(b"\\xe9")
    c_locale = shell('"$@" --json -', *words, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="")
    assert c_locale.returncode == 0 and c_locale.stdout.startswith(b"\\xe9")
    assert json.loads(c_locale.stdout[c_locale.stdout.index(b"{\n") :])["prompt"] == "é"


@pytest.mark.parametrize("arguments, where", [([], "the prompt: "), (["Hi", "--stop"], "--stop: ")])
def test_argument_that_is_not_utf_8(model, arguments, where):
    done = astra("generate", str(model), *arguments, b"caf\xe9")
    assert done.returncode == 2
    assert own_lines(done)[0].startswith(
        f"astra-mpi: error: {where}byte 0xE9 behind 3 characters is not UTF-8; give it in UTF-8"
    )


def test_paths_may_be_of_any_bytes_and_other_values_not(tmp_path):
    text = '[model]\npath="m.h5"\n[input]\npath="in.txt"\nkind="text"\n[task]\nname="embed"\n[output]\npath="o.h5"\n'
    (tmp_path / "deck.toml").write_text(text)
    name = b"caf\xe9.txt".decode(errors="surrogateescape")
    deck = load_deck(tmp_path / "deck.toml", [f"input.path={name}"])
    assert deck.input.path.name == name
    with pytest.raises(InputError, match=r"command line: input\.dataset: byte 0xE9 behind 3 characters"):
        load_deck(tmp_path / "deck.toml", [f"input.dataset={name}"])


def test_files_in_folders_of_any_bytes(tmp_path, model):
    folder = tmp_path / b"d\xe9".decode(errors="surrogateescape")
    folder.mkdir()
    (folder / "m.h5").write_bytes(model.read_bytes())
    done = astra("info", str(folder / "m.h5"))
    assert done.returncode == 0 and "d\\udce9/m.h5" in done.stdout
    deck = '[model]\npath="m.h5"\n[input]\npath="in.txt"\nkind="text"\n[task]\nname="generate"\nmax_new_tokens=2\n'
    (folder / "deck.toml").write_text(deck + '[parallel]\nstrategy="sp"\n[output]\npath="o.h5"\n')
    (folder / "in.txt").write_text("a\nb\n")
    done = shell('"$@"', "run", folder / "deck.toml", "--log-dir", folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "o.h5").exists() and "\\udce9" in (folder / "rank-0000.log").read_text()


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("in.jsonl", '{"text": "w1 \\ud83d w2"}', r"line 30: \\ud83d behind 3 characters is half of a character"),
        ("in.jsonl", '{"text": "\\udce9"}', r"line 30: byte 0xE9 behind 0 characters is not UTF-8"),
        ("in.txt", "\ud83d", "is not UTF-8 at byte"),
        ("in.tsv", "a\t\ud83d", "is not UTF-8 at byte"),
    ],
)
def test_half_a_character_in_one_line(tmp_path, name, text, said):
    path = tmp_path / name
    fill = {"in.jsonl": '{"text": "w1"}', "in.txt": "w1", "in.tsv": "text\tx"}[name]
    path.write_bytes("\n".join([fill] * 29 + [text] + [fill] * 9).encode(errors="surrogatepass"))
    with pytest.raises(InputError, match=rf"{name}.*{said}"):
        Records(path, ("text",), None, kind_of("text", path))


def test_whole_characters_of_two_escapes(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00", "other": "\\ud83d"}\n')
    assert Records(path, ("text",), None, kind_of("text", path)).texts(range(1)) == ["\U0001f600"]


def test_what_is_said_of_text():
    assert undecodable("é\U0001f600") == "" and argument_text("é") == "é"
    assert undecodable("a\udcff") == "byte 0xFF behind 1 characters is not UTF-8"
    for text in ("\ud83d", "\udce9"):
        with pytest.raises(InputError, match="give it in UTF-8"):
            argument_text(text)


def test_nothing_raises_in_the_middle():
    with open("/dev/full", "wb") as full:
        stream = _Output(full, "utf-8")
        assert stream.write("x" * 100_000) == 100_000
        stream.flush()
        with pytest.raises(Exception, match="No space left on device"):
            raise_if_lost(stream)
        stream.failure = BrokenPipeError()
        with pytest.raises(ReaderGone):
            raise_if_lost(stream)
        raise_if_lost(sys.stdout)
