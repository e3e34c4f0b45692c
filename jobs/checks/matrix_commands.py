"""Every command on one model, and what became of it: a result that is plausible, or one sentence that says why not."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from matrix_models import CODECS, CONFIGS, DECODERS, MAPS, N_ITEMS, SITES, Variant
from mpi4py import MPI

from astra_mpi import cli
from astra_mpi.device.formats import DTYPES
from astra_mpi.errors import AstraError
from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.strategies import AUTO, STRATEGIES, forms

SPECS = tuple(spec for name in STRATEGIES for spec in forms(name))
LATE = "astra:late"
TASKS = ("embed", "classify", "rerank", "perplexity", "generate")
YES = "yes"
_LAUNCHERS = ("PMI", "OMPI", "PRTE", "SLURM", "HYD", "MPI", "MPICH")


def specs_of(variant: Variant) -> tuple[str, ...]:
    """What is tried on a model: late codes where it has maps."""
    return (*SPECS, LATE) if variant.has_maps else SPECS


@dataclass(frozen=True)
class Outcome:
    """Of one cell: a row of a table, on one model."""

    table: str
    row: str
    variant: Variant
    text: str  # YES, a reason, or what went wrong
    failed: bool = False


class Bench:
    """Where commands run: a folder with models and inputs, on the ranks of a communicator."""

    def __init__(self, folder: Path, comm: MPI.Comm) -> None:
        self.folder, self.comm = folder, comm

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def run(self, *words: str) -> tuple[int, str]:
        """Collective: a command line in this process -> exit code, what it said on stdout or as its error."""
        out, code, said = io.StringIO(), 0, ""
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as told:
            try:
                args = cli._parse([str(word) for word in words])
                if args.spmd:
                    code = int(args.run(args, self.comm))
                elif self.comm.Get_rank() == 0:
                    code = int(args.run(args))
            except SystemExit as exc:
                code, said = int(str(exc.code or 0)), told.getvalue()
            except AstraError as exc:
                code, said = exc.exit_code, str(exc)
            except Exception:
                code, said = 1, traceback.format_exc()
        told_all = json.loads(broadcast_text(self.comm, json.dumps([code, said or out.getvalue()])))
        return int(told_all[0]), str(told_all[1])


Judge = Callable[[], str]


def outcome(bench: Bench, table: str, row: str, variant: Variant, words: list[str], judge: Judge) -> Outcome:
    """Collective: run and judge. judge: on rank 0 after success, what is implausible, or nothing."""
    code, said = bench.run(*words)
    if code == 0:
        wrong = ""
        if bench.comm.Get_rank() == 0:
            try:
                wrong = judge()
            except Exception:
                wrong = traceback.format_exc()
        wrong = broadcast_text(bench.comm, wrong)
        return Outcome(table, row, variant, wrong or YES, bool(wrong))
    one_sentence = code == 2 and len(said.strip().splitlines()) == 1
    return Outcome(
        table, row, variant, plain(said, bench) if one_sentence else f"exit {code}: {said}", not one_sentence
    )


def plain(reason: str, bench: Bench) -> str:
    """A reason without what depends on the folder: names of files."""
    reason = reason.strip().replace(f"{bench.folder}{os.sep}", "")
    for variant in (Variant(family, codec) for family in CONFIGS for codec in ("none", *CODECS, *MAPS)):
        reason = reason.replace(variant.file, "MODEL.h5")
    return reason


def read(bench: Bench, name: str) -> Any:
    return json.loads((bench.folder / name).read_text())


def info(bench: Bench, variant: Variant) -> Iterator[Outcome]:
    def judge() -> str:
        found = read(bench, "info.json")
        return "" if CONFIGS[variant.family].family in json.dumps(found) else "the family is not told"

    words = ["info", bench.path(variant.file), "--json", bench.path("info.json")]
    yield outcome(bench, "commands", "`info`", variant, words, judge)


def rows(
    bench: Bench, table: str, variant: Variant, words: list[str], found: Callable[[], dict[str, str]]
) -> Iterator[Outcome]:
    """Collective: one run with a row per strategy; found: on rank 0, strategy -> "", "skipped: why" or what is
    wrong."""
    code, said = bench.run(*words)
    if code:
        for spec in specs_of(variant):
            refused = code == 2 and len(said.strip().splitlines()) == 1
            yield Outcome(table, spec, variant, plain(said, bench) if refused else f"exit {code}: {said}", not refused)
        return
    told = broadcast_text(bench.comm, json.dumps(found() if bench.comm.Get_rank() == 0 else {}))
    for spec, text in json.loads(told).items():
        skipped = text.startswith("skipped: ")
        yield Outcome(table, spec, variant, text.removeprefix("skipped: ") or YES, bool(text) and not skipped)


def verify(bench: Bench, variant: Variant) -> Iterator[Outcome]:
    def found() -> dict[str, str]:
        checks = read(bench, "verify.json")["checks"]
        return {check["strategy"]: check["reason"] for check in checks}

    words = ["verify", bench.path(variant.file), "--batch", "2", "--json", bench.path("verify.json")]
    yield from rows(bench, "verify", variant, words, found)
    if variant.has_maps:
        yield from rows(bench, "verify", variant, [*words, "--strategies", LATE], found)
    for compute in ("bfloat16", "int8"):  # of each way to multiply: all rows, a part of the columns, what codes become
        few = ["--strategies", "sp:x:float32,tp,astra:codes", "--compute", compute]

        def judge() -> str:
            return "; ".join(check["reason"] for check in read(bench, "verify.json")["checks"] if not check["passed"])

        yield outcome(bench, "commands", f"`verify`, {compute}", variant, [*words, *few], judge)


def bench_(bench: Bench, variant: Variant) -> Iterator[Outcome]:
    """What applies in one run, as without --strategies; the others must be refused with a reason."""
    words = ["bench", bench.path(variant.file), "--repeats", "1", "--warmup", "0", "--json", bench.path("bench.json")]
    done = {}
    for spec in specs_of(variant):
        code, said = bench.run(*words, "--strategies", spec)
        runs = read(bench, "bench.json")["runs"] if code == 0 else []
        fine = code == 0 and runs[0]["strategy"] == spec and runs[0]["latency_s"]["total"] > 0
        refused = code == 2 and len(said.strip().splitlines()) == 1
        done[spec] = fine
        reason = plain(said, bench).removeprefix(f"strategy {spec}: ")
        text = YES if fine else reason if refused else f"exit {code}: {said}"
        yield Outcome("bench", spec, variant, text, not (fine or refused))
    code, said = bench.run(*words)  # every one that applies
    names = {run["strategy"] for run in read(bench, "bench.json")["runs"]} if code == 0 else set()
    wanted = {spec for spec in STRATEGIES if done.get(forms(spec)[0])}
    wrong = "" if {name.split(":")[0] for name in names} == wanted else f"exit {code}: {names} for {wanted}: {said}"
    yield Outcome("commands", "`bench`, `report`", variant, wrong or YES, bool(wrong))


def report(bench: Bench, variant: Variant) -> Iterator[Outcome]:
    """Of what `bench` has measured."""
    page = bench.folder / "report.html"
    words = ["report", bench.path("bench.json"), "-o", str(page)]
    yield outcome(
        bench, "commands", "`bench`, `report`", variant, words, lambda: "" if page.stat().st_size > 1000 else "empty"
    )


def plan(bench: Bench, variant: Variant) -> Iterator[Outcome]:
    words = ["plan", bench.path(variant.file), "-n", "4", "--bandwidth", "10Mbps", "--json", bench.path("plan.json")]

    def judged(row: dict[str, Any]) -> str:
        if "skipped" in row:
            return f"skipped: {row['skipped']}"
        seconds = row["latency_s"]["port"] if "latency_s" in row else row["modes"]["local"]["total_s"]
        return "" if 0 < seconds < 60 else f"{seconds} s"

    def passes() -> dict[str, str]:
        return {row["strategy"]: judged(row) for row in read(bench, "plan.json")["strategies"]}

    def decoding() -> dict[str, str]:
        return {row["strategy"]: judged(row) for row in read(bench, "plan.json")["decode"]["strategies"]}

    yield from rows(bench, "plan", variant, words, passes)
    yield from rows(bench, "plan --new-tokens", variant, [*words, "--new-tokens", "5"], decoding)
    picture = bench.folder / "plan.png"
    draw = [*words, "--plot", str(picture), *(["--new-tokens", "5"] if variant.family in DECODERS else [])]
    if find_spec("matplotlib"):
        yield outcome(
            bench, "commands", "`plan --plot`", variant, draw, lambda: "" if picture.exists() else "no picture"
        )


def generate(bench: Bench, variant: Variant) -> Iterator[Outcome]:
    def judge() -> str:
        made = read(bench, "generate.json")
        return "" if len(made["tokens"]) == 3 and made["text"] else f"{made['tokens']}"

    for spec in (AUTO, *specs_of(variant)):
        words = ["generate", bench.path(variant.file), "a cab", "--max-new-tokens", "3", "--strategy", spec]
        words += ["--network", "1Mbps,rtt=0.1ms"] if spec == AUTO else []
        words += ["--json", bench.path("generate.json")]
        one = outcome(bench, "generate", spec, variant, words, judge)
        yield _without(one, f"MODEL.h5 with strategy {spec}: ", f"strategy {spec} does")


def _without(one: Outcome, *named: str) -> Outcome:
    """Its reason as it is for every strategy."""
    text = one.text
    for words in named:
        text = text.replace(words, "it does" if words.endswith(" does") else "")
    return Outcome(one.table, one.row, one.variant, text, one.failed)


def deck(bench: Bench, variant: Variant, task: str, name: str = "out.h5") -> list[str]:
    """Words of `run`."""
    images = variant.images
    path, kind = ("images.npz", "images") if images else ("texts.txt", "text")
    given = {
        "model.path": bench.path(variant.file), "input.path": bench.path(path), "input.kind": kind, "task.name": task,
        "run.batch": 2, "run.resume": "false", "output.path": bench.path(name),
    }  # fmt: skip
    more = {
        "perplexity": {"input.max_tokens": 12},
        "generate": {"task.max_new_tokens": 3},
        "classify": {"input.labels": "labels"} if images else {},
    }
    empty = bench.folder / "empty.toml"
    empty.write_text("")
    return ["run", str(empty), *(f"{key}={value}" for key, value in {**given, **more.get(task, {})}.items())]


def _whole(bench: Bench, path: Path, task: str) -> str:
    """Finite numbers of all items; of perplexity, which cuts its text into windows, of all tokens but the first."""
    with h5py.File(path, locking=False) as file:
        outputs = {name: values[()] for name, values in file["outputs"].items()}
    for name, values in outputs.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return f"outputs/{name} is not finite"
        if task != "perplexity" and len(values) != N_ITEMS:
            return f"outputs/{name} has {len(values)} items of {N_ITEMS}"
    if task == "perplexity":
        n_scored, n_tokens = outputs["scored"].sum(), len((bench.folder / "texts.txt").read_text())
        return "" if n_scored == n_tokens - 1 else f"{n_scored} of {n_tokens} tokens are scored"
    return "" if outputs else "no outputs"


def run(bench: Bench, variant: Variant, specs: tuple[str, ...] | None = None) -> Iterator[Outcome]:
    """Every task with the default strategy; the one that fits with every strategy."""
    fits = variant.task
    out = bench.folder / "out.h5"
    for task in TASKS:
        words = [*deck(bench, variant, task), "parallel.network=1Mbps,rtt=0.1ms"]
        yield outcome(bench, "commands", f"`run`, {task}", variant, words, lambda task=task: _whole(bench, out, task))
    for task in (fits,) if fits else ("perplexity", "generate"):
        for spec in specs or (AUTO, *specs_of(variant)):
            words = [*deck(bench, variant, task), f"parallel.strategy={spec}"]
            words += ["parallel.network=1Mbps,rtt=0.1ms"] if spec == AUTO else []
            one = outcome(bench, f"run, {task}", spec, variant, words, lambda task=task: _whole(bench, out, task))
            prefixes = f"MODEL.h5 with strategy {spec}: ", f"strategy {spec} does", f"strategy '{spec}' is "
            yield _without(one, *prefixes, "command line: parallel.strategy: ")


def merge(bench: Bench, variant: Variant) -> Iterator[Outcome]:
    task = variant.task or "perplexity"
    merged, parts = bench.folder / "merged.h5", [bench.path(f"out.{i}-of-2.h5") for i in range(2)]
    for i in range(2):
        code, said = bench.run(*deck(bench, variant, task), "--shard", f"{i}/2", "parallel.network=1Mbps")
        if code:
            yield Outcome("commands", "`merge` of shards", variant, f"exit {code}: {said}", True)
            return
    if bench.comm.Get_rank() == 0:
        merged.unlink(missing_ok=True)
    yield outcome(
        bench,
        "commands",
        "`merge` of shards",
        variant,
        ["merge", str(merged), *parts],
        lambda: _whole(bench, merged, task),
    )


def calibrate(bench: Bench, variant: Variant) -> Iterator[Outcome]:
    """From the model of the matrix, whether it has codebooks or not."""
    data = "images.npz" if variant.images else "texts.txt"
    for site in SITES:
        for kind, count in (("residual", "--stages"), ("grouped", "--groups")):
            words = ["calibrate", bench.path(variant.file), "--data", bench.path(data), "-o", bench.path("made.h5")]
            words += ["--site", site, "--kind", kind, count, "2", "--codebook-size", "4"]

            def judge(site: str = site, kind: str = kind) -> str:
                with h5py.File(bench.path("made.h5")) as file:
                    found = file["codec"].attrs["site"], file["codec"].attrs["kind"]
                return "" if found == (site, kind) else f"{found}"

            yield outcome(bench, "commands", f"`calibrate`, {kind} {site}", variant, words, judge)
    for predict in ("linear", "next") if variant.has_maps else ():
        words = ["calibrate", bench.path(variant.file), "--data", bench.path(data), "-o", bench.path("made.h5")]
        words += ["--predict", predict, "--every", "2", "--stages", "2", "--codebook-size", "4"]
        row = f"`calibrate`, predict {predict}, every 2"
        yield _verified(
            bench, outcome(bench, "commands", row, variant, words, lambda: ""), bench.path("made.h5"), "astra:late"
        )


def convert(bench: Bench, variant: Variant) -> Iterator[Outcome]:
    """A model file in another storage, held against the oracle afterwards."""
    for dtype in DTYPES:
        made = bench.path("stored.h5")
        words = ["convert", bench.path(variant.file), made, "--dtype", dtype]
        one = outcome(bench, "commands", f"`convert` .h5, {dtype}", variant, words, lambda: "")
        yield _verified(bench, one, made, "single,astra" if variant.coded else "sp")


def _verified(bench: Bench, one: Outcome, made: str, strategies: str) -> Outcome:
    """Collective: a command's outcome, and that `verify` passes the file that it made."""
    if one.text != YES:
        return one
    code, said = bench.run("verify", made, "--batch", "1", "--strategies", strategies)
    return one if code == 0 else Outcome(one.table, one.row, one.variant, f"verify: exit {code}: {said}", True)


def train(bench: Bench, variant: Variant) -> Iterator[Outcome]:
    """Two steps: the whole model, and codebooks alone."""
    images = variant.images
    data = (
        {"train": "many.npz", "kind": "images", "labels": "labels"}
        if images
        else {"train": "tokens.npz", "kind": "tokens"}
    )
    trained = bench.folder / "trained.h5"

    for learn in ("all", "codebooks"):
        words = ["train", bench.path("empty.toml"), f"model.path={bench.path(variant.file)}", f"train.learn={learn}"]
        words += [f"data.{key}={bench.path(value) if key == 'train' else value}" for key, value in data.items()]
        words += ["codec.stages=2", "codec.codebook_size=4", "train.steps=2", "train.batch=4", "train.ranks=[2]"]
        words += ["train.eval_every=2", "train.resume=false", f"output.path={bench.path('trained.h5')}"]
        (bench.folder / "empty.toml").write_text("")
        one = outcome(bench, "commands", f"`train`, {learn}", variant, words, lambda: "")
        yield _verified(bench, one, str(trained), "astra")
        if bench.comm.Get_rank() == 0:
            trained.unlink(missing_ok=True)


def doctor(bench: Bench, variant: Variant) -> Iterator[Outcome]:
    words = ["doctor", "--links-s", "0.2", "--files", bench.path(variant.file), "--json", bench.path("doctor.json")]
    yield outcome(
        bench, "commands", "`doctor`", variant, words, lambda: "" if read(bench, "doctor.json")["ranks"] else "none"
    )


def sweep(bench: Bench, variant: Variant) -> Iterator[Outcome]:
    """In processes of its own, by its own launcher."""
    made, code, said = bench.folder / "sweep.toml", 0, ""
    if bench.comm.Get_rank() == 0:
        for old in bench.folder.glob("sweep.out*"):
            if old.is_file():
                old.unlink()
        made.write_text(
            f'[model]\npath = "{variant.file}"\n[sweep]\nstrategies = ["sp"]\nranks = [2]\nrepeats = 1\nwarmup = 0\n'
            f'[output]\npath = "sweep.out-{variant.file}"\n'
        )
        alone = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS)}
        command = [sys.executable, "-m", "astra_mpi", "sweep", str(made)]
        done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=120, cwd=bench.folder)
        code, said = done.returncode, done.stderr
    code, said = json.loads(broadcast_text(bench.comm, json.dumps([code, said])))
    text = YES if code == 0 else f"exit {code}: {said}"
    yield Outcome("commands", "`sweep`", variant, text, code != 0)


COMMANDS: dict[str, Callable[[Bench, Variant], Iterator[Outcome]]] = {
    "info": info, "doctor": doctor, "plan": plan, "verify": verify, "bench": bench_, "report": report, "run": run,
    "merge": merge, "generate": generate, "calibrate": calibrate, "convert": convert, "train": train, "sweep": sweep,
}  # fmt: skip
