"""Every command on every family: a result or one sentence, never a traceback; docs/reference/support.md says so too.

A fast selection of jobs/checks/matrix.py: of every family the model without codebooks and one with them.
"""

from importlib.util import find_spec
from pathlib import Path

import matrix_commands
import pytest
from matrix_commands import COMMANDS, YES, Bench, Outcome, outcome, run
from matrix_models import CODECS, CONFIGS, PLAIN, Variant, write_models
from matrix_page import COLUMNS, kept, page, read_page
from mpi4py import MPI

from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.strategies import AUTO

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "support.md"
CODED = {"bert": "grouped hidden", "vit": "residual normed", "gpt2": "grouped kv", "llama": "residual kv"}
VARIANTS = [Variant(family, codec) for family, own in CODED.items() for codec in (PLAIN, own)]
#: left to the job: in processes of its own; on models with codebooks; on other families
ELSEWHERE, PLAIN_ONLY, ONCE = ("sweep",), ("report", "merge", "calibrate"), {"train": "bert", "doctor": "vit"}
QUICK = (AUTO, "single", "tp", "segment_means:8", "astra:inputs")


@pytest.fixture(scope="module")
def known():
    return read_page(PAGE.read_text())


def checked(known, outcomes):
    """None failed, and the page has each."""
    n_cells = 0
    for one in outcomes:
        assert not one.failed, f"{one.table}: {one.row} on {one.variant.file}: {one.text}"
        assert one.text in known[one.table, one.row, one.variant.column], (
            f"docs/reference/support.md lacks {one}; run jobs/checks/matrix.py"
        )
        n_cells += 1
    return n_cells


def folder_of(comm, tmp_path, *wanted):
    shared = Path(broadcast_text(comm, str(tmp_path)))
    if comm.rank == 0:
        write_models(shared, list(wanted))
    comm.Barrier()
    return Bench(shared, comm)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.file.removesuffix(".h5"))
def test_commands_on_one_rank(tmp_path, known, variant):
    bench = folder_of(MPI.COMM_SELF, tmp_path, variant)
    n_cells = 0
    for name, command in COMMANDS.items():
        if name in ELSEWHERE or (name == "train" and find_spec("torch") is None):
            continue
        if (variant.coded and name in (*PLAIN_ONLY, *ONCE)) or ONCE.get(name, variant.family) != variant.family:
            continue
        outcomes = run(bench, variant, QUICK) if name == "run" else command(bench, variant)
        n_cells += checked(known, outcomes)
    assert n_cells > 80


@pytest.mark.mpi
@pytest.mark.parametrize("family", CODED)
def test_commands_on_these_ranks(comm, tmp_path, known, family):
    if comm.size not in (2, 3):
        pytest.skip("2 ranks, as docs/reference/support.md has them, and 3, which divide little")
    variant = Variant(family, CODED[family])
    bench = folder_of(comm, tmp_path, variant)
    heads = CONFIGS[family].n_heads  # which bp cuts into equal parts: on 3 ranks it has another reason
    for name in ("info", "verify"):
        outcomes = [one for one in COMMANDS[name](bench, variant) if heads % comm.size == 0 or "bp" not in one.row]
        assert checked(known, outcomes)
    assert checked(known, run(bench, variant, (AUTO, "tp")))


def test_other_columns_are_kept():
    text = PAGE.read_text()
    assert read_page(page(kept(text, ()))) == read_page(text)
    others = {column for _, _, column in read_page(page(kept(text, ["vit", "gpt2 + maps"])))}
    assert others == {*COLUMNS} - {"vit", "gpt2 + maps"}


def test_what_fails_is_seen(tmp_path, monkeypatch):
    """A traceback, an exit code of 3, two sentences and an implausible result are failures; a reason is none."""
    variant = Variant("gpt2")
    bench = folder_of(MPI.COMM_SELF, tmp_path, variant)

    def found(said, judged=""):
        monkeypatch.setattr(bench, "run", lambda *words: said)
        return outcome(bench, "commands", "`info`", variant, [], lambda: judged)

    assert found((0, "")).text == YES and not found((0, "")).failed
    assert found((0, ""), "nothing was written").failed
    assert found((2, f"{tmp_path}/gpt2-none.h5: no")) == Outcome("commands", "`info`", variant, "MODEL.h5: no")
    for code, said in ((2, "one\ntwo"), (2, ""), (3, "a failure"), (1, "Traceback")):
        assert found((code, said)).failed


def test_a_command_s_exit_code_and_error_are_those_of_the_command_line(tmp_path):
    bench = Bench(tmp_path, MPI.COMM_SELF)
    assert bench.run("info", "nothing.h5")[0] == 2
    assert bench.run("verify") == (2, bench.run("verify")[1]) and "required" in bench.run("verify")[1]


def test_page_read_back():
    one = [
        Outcome("verify", "sp", Variant("bert"), YES),
        Outcome("verify", "astra", Variant("bert"), "no codebooks, none; calibrate"),
        Outcome("verify", "astra", Variant("bert", "residual kv"), YES),
        Outcome("commands", "`run`, embed", Variant("llama", "residual kv"), "1. not so"),
        Outcome("commands", "`run`, embed", Variant("llama", "grouped kv"), YES),
    ]
    wanted = {}
    for each in one:
        wanted.setdefault((each.table, each.row, each.variant.column), set()).add(each.text)
    assert read_page(page(one)) == wanted


def test_all_that_is_promised_is_on_the_page(known):
    """Every command, family, strategy and kind of codec; every strategy of every table ran on every family."""
    columns = {*COLUMNS}
    assert {column for _, _, column in known} == columns and len(CODECS) == 6 and len(columns) == 13
    rows = " ".join(row for table, row, _ in known if table == "commands")
    words = [name.rstrip("_") for name in COMMANDS if name not in ("plan", "verify", "generate")]
    assert all(word in rows for word in words) and "plan --plot" in rows
    for table in ("verify", "bench", "plan", "plan --new-tokens", "generate"):
        found = {(row, column) for name, row, column in known if name == table}
        assert {column for _, column in found} == columns
        assert {row for row, _ in found} - {AUTO} == {*matrix_commands.SPECS, matrix_commands.LATE}
        assert (matrix_commands.LATE, "gpt2 + maps") in found
