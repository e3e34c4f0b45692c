"""Whole commands whose files may have no more than N bytes, or whose file system is small (fault_writes.py)."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fuzz_files
import h5py
import numpy as np

from astra_mpi.errors import AstraError
from astra_mpi.job.info import check_contents

Row = dict[str, Any]

#: bytes that a file may have at least: PyTorch looks for a folder where a temporary one can be written
LEAST = 64
#: command -> its words, and whether it takes several ranks
COMMANDS: dict[str, tuple[str, bool]] = {
    "init": ("init llama-tiny out/m.h5 --no-codebooks --dtype int8", False),
    "convert": ("convert hf out/m.h5", False),
    "convert --check": ("convert plain out/m.h5 --check", False),
    "calibrate": ("calibrate model.h5 --data tokens.npz -o out/m.h5 --samples 200 --codebook-size 8", True),
    "run": ("run batch.toml output.path=out/out.h5", True),
    "train": ("train train.toml output.path=out/m.h5 train.steps=2 train.batch=2 codec.codebook_size=8", True),
    "bench": ("bench model.h5 --repeats 1 --warmup 0 --tokens 8 --json out/b.json --trace out/t.json", True),
    "verify": ("verify model.h5 --tokens 8 --strategies single --json out/v.json", True),
    "doctor": ("doctor --links-s 0.1 --json out/d.json", True),
    "generate": ("generate speaks.h5 abc --max-new-tokens 4 --json out/g.json", True),
    "plan": ("plan model.h5 -n 2 --json out/p.json --plot out/p.png", False),
    "info": ("info model.h5 --json out/i.json", False),
    "merge": ("merge out/m.h5 shard0.h5 shard1.h5", False),
    "report": ("report runs.json -o out/r.html --figures out/figures", False),
    "sweep": ("sweep sweep-one.toml", False),
}
#: what a command needs besides
_NEEDS = {"convert --check": ("torch", "transformers")}
_DECK = """
[model]
path = "model.h5"
[input]
path = "tokens.npz"
kind = "tokens"
mask = "lengths"
[task]
name = "embed"
[parallel]
strategy = "sp"
[run]
batch = 2
[output]
path = "out.h5"
"""
_SWEEP = """
[model]
path = "model.h5"
tokens = [8]
[sweep]
strategies = ["single", "sp"]
networks = ["10Mbps"]
ranks = [1]
clock = "virtual"
repeats = 1
warmup = 0
[launch]
launcher = "bash -c 'ulimit -S -f unlimited; exec \\"$@\\"' {ranks}"
[output]
path = "out/s"
"""
#: MPI's own shared memory is a file too: the limit comes after it, and the points of a sweep have none
_LIMITED = (
    "import resource, sys; from mpi4py import MPI; from astra_mpi.cli import main; "
    "most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]; "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), most)); sys.exit(main(sys.argv[2:]))"
)


def run_all(folder: Path) -> Iterator[tuple[tuple[str, str], Row]]:
    """-> (command, fault), what came of it."""
    folder.mkdir()
    _make_inputs(folder)
    for name, (words, together) in COMMANDS.items():
        if missing := [need for need in _NEEDS.get(name, ()) if not find_spec(need)]:
            print(f"{name:<24}skipped: {', '.join(missing)} missing", flush=True)
            continue
        for ranks in (1, 2) if together else (1,):
            yield (name, f"size, {ranks} rank{'s' * (ranks > 1)}"), _by_size(folder, words.split(), ranks)
    if os.geteuid() == 0 and shutil.which("unshare"):
        for ranks in (1, 2):
            yield ("run", f"tmpfs, {ranks} rank{'s' * (ranks > 1)}"), _by_room(folder, ranks)


def _make_inputs(folder: Path) -> None:
    from fault_writers import make_inputs

    from astra_mpi.files.modelfile import ModelFile, write_model

    fuzz_files.write_all(folder)
    shutil.copytree(folder / "hf", folder / "plain", ignore=shutil.ignore_patterns("modules.json", "pool"))
    (folder / "batch.toml").write_text(_DECK)
    (folder / "sweep-one.toml").write_text(_SWEEP)
    make_inputs(folder)
    llama = fuzz_files.LLAMA
    write_model(folder / "speaks.h5", ModelFile(llama, fuzz_files.weights_of(llama), None, fuzz_files.tokenizer_json()))


def _by_size(folder: Path, words: list[str], ranks: int) -> Row:
    """Limits below the size of every file that the command writes."""
    row: Row = {"tried": 0, "failed": 0, "wrong": []}
    code, said = _start(folder, words, ranks, None)
    if code:
        return row | {"tried": 1, "wrong": [f"without a fault it ends with {code}: {said}"]}
    whole = _arrays(folder / "out")
    sizes = sorted({path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file()})
    for n_bytes in sorted({LEAST, *(size // 2 for size in sizes), *(size - 1 for size in sizes)}):
        row["tried"] += 1
        code, said = _start(folder, words, ranks, n_bytes)
        if not code:
            continue  # figures differ from run to run, and so does their length
        row["failed"] += 1
        row["wrong"] += _wrong(folder / "out", code, said)
        code, said = _start(folder, words, ranks, None, anew=False)
        if code or _arrays(folder / "out") != whole:
            row["wrong"].append(f"after {n_bytes} bytes the same command ends with {code}, or other contents: {said}")
    return row


def _by_room(folder: Path, ranks: int) -> Row:
    """The batch job on file systems of more and more room; then room is made, and the same command goes on."""
    row: Row = {"tried": 0, "failed": 0, "wrong": []}
    words = COMMANDS["run"][0].split()
    _start(folder, words, ranks, None)
    whole = _arrays(folder / "out")
    command = " ".join(_command(words, ranks))
    for k in range(4, 80, 4):
        shutil.rmtree(folder / "out")
        (folder / "out").mkdir()
        script = f"mount -t tmpfs -o size={k}k none out; {command} 2>said >/dev/null; echo $? >code\n"
        script += (
            f"cp -r out seen; mount -o remount,size=50m out; {command} >/dev/null 2>&1; echo $? >>code; cp -r out got"
        )
        for name in ("seen", "got"):
            shutil.rmtree(folder / name, ignore_errors=True)
        subprocess.run(["unshare", "-m", "bash", "-c", script], cwd=folder, timeout=300, check=False)
        first, second = map(int, (folder / "code").read_text().split())
        row["tried"] += 1
        row["failed"] += first != 0
        if first:
            row["wrong"] += _wrong(folder / "seen", first, (folder / "said").read_text())
        if second or _arrays(folder / "got") != whole:
            row["wrong"].append(f"{k} KiB: after room was made it ends with {second}, or other results")
        if not first:
            break
    return row


def _start(folder: Path, words: list[str], ranks: int, n_bytes: int | None, anew: bool = True) -> tuple[int, str]:
    """anew: without what it wrote before."""
    if anew:
        shutil.rmtree(folder / "out", ignore_errors=True)
        (folder / "out").mkdir()
    done = subprocess.run(
        _command(words, ranks, n_bytes), cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stderr


def _command(words: list[str], ranks: int, n_bytes: int | None = None) -> list[str]:
    limit = resource.RLIM_INFINITY if n_bytes is None else n_bytes
    launcher = [] if ranks == 1 else ["mpirun", "-n", str(ranks)]
    one = ["-m", "astra_mpi"] if n_bytes is None else ["-c", _LIMITED, str(limit)]
    return [*launcher, sys.executable, *one, *words]


def _wrong(out: Path, code: int, said: str) -> list[str]:
    """What must not be after a failure."""
    found = []
    lines = [line for line in said.splitlines() if line.startswith("astra-mpi: ")]
    if code != 3 or "Traceback" in said or len(lines) != 1 or "cannot be written (" not in lines[0]:
        found.append(f"exit code {code}: {said[-500:]}")
    for path in out.rglob("*"):
        if path.name.endswith(".tmp") or path.name.startswith("lock"):
            found.append(f"{path.name} is left over")
        try:
            if path.suffix == ".h5":
                check_contents(path) if not path.parent.name.endswith(".parts") else None
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
        except (AstraError, ValueError) as exc:
            found.append(str(exc))
    return found


def _arrays(out: Path) -> dict[str, Any]:
    """Names of files, and the bits of the arrays in them: attributes have dates and times."""
    found: dict[str, Any] = {str(path.relative_to(out)): None for path in out.rglob("*")}
    for path in out.rglob("*.h5"):
        with h5py.File(path) as file:
            names: list[str] = []
            file.visit(names.append)
            items = {f"{path.name}/{name}": file[name] for name in names}
            found |= {n: np.asarray(i[()]).tobytes() for n, i in items.items() if isinstance(i, h5py.Dataset)}
    return found
