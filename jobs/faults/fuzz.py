"""Hostile files against everything that reads files: does it ever crash, hang, take memory, or write where it may not?

    python jobs/faults/fuzz.py                               # 12,000 files, seeds 0..11999
    python jobs/faults/fuzz.py --cases 500 --only model,deck # some of them
    python jobs/faults/fuzz.py --seed 4711                   # that one case again, its file kept, its outcome told

A case is a valid file (fuzz_files.py), damaged as its seed says (fuzz_damage.py), read by a process of its own: a fork
with limits on address space, processor time and wall time, and an audit hook that sees every file Python opens for
writing, every program, socket and pickle. What a reader accepts is used: models run a forward pass, inputs are read to
the end.

Allowed ends: accepted, or refused with one sentence that names the file. Everything else is a finding: another
exception, a signal, a time-out, more memory than the bound (256 MiB and 16 times the file), a write outside the case's
`out` folder. Findings go to FOLDER/findings.jsonl with their seeds; a job that is started again goes on after the last
finished hundred. Exit code 1 if there are findings.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_damage
import fuzz_files
import fuzz_gguf
import numpy as np
from mpi4py import MPI

from astra_mpi.convert import hugging_face as convert
from astra_mpi.convert import llama2c
from astra_mpi.convert.chat import read_chat_template
from astra_mpi.convert.gguf import convert_gguf
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.decks import deck
from astra_mpi.decks.deck import InputSection
from astra_mpi.device.backend import get_backend
from astra_mpi.device.threads import set_threads
from astra_mpi.engine import Model
from astra_mpi.errors import AstraError
from astra_mpi.files import codecfile, modelfile
from astra_mpi.inputs.chat import ChatTemplate
from astra_mpi.inputs.opening import open_input
from astra_mpi.job import info, merge, results
from astra_mpi.measure.sweep import deck as sweep_deck
from astra_mpi.network import spec as network
from astra_mpi.planner import inputs as planner_inputs
from astra_mpi.ranks import witness
from astra_mpi.train.deck import load_train_deck

#: seconds of wall and processor time, and bytes of memory, that a case may take
WALL_S, CPU_S = 30, 20
MEMORY_BYTES, PER_FILE_BYTE = 256 << 20, 16
#: room in the address space, above which an allocation fails: the machine is spared what the bound then reports
ADDRESS_BYTES = 3 << 30

Read = Callable[[Path], object]


def read_model(path: Path) -> None:
    info.describe(path)
    file = modelfile.read_model(path)
    model = Model(file, MPI.COMM_SELF, BACKEND)
    for strategy in ("single", *(["astra"] if file.codec else [])):
        model.use(strategy)
        inputs, mask = random_batch(file.config, 2, 4, ragged=True)
        model(inputs, mask)


def read_codebooks(path: Path) -> None:
    info.describe(path)
    import h5py

    with h5py.File(path.parent / "vit.h5") as file:
        digest = file.attrs["digest"]
    codecfile.check_codec(codecfile.read_codebooks(path, digest), fuzz_files.VIT, path)


def read_gguf(path: Path) -> None:
    tempfile.tempdir = str(path.parent / "out")
    model, _ = convert_gguf(path)
    modelfile.write_model(path.parent / "out" / "gguf.h5", model)


def read_input(kind: Any, config: Any, pairs: bool = False, **more: Any) -> Read:
    def read(path: Path) -> None:
        where = path.parent if path.parent.name == "pictures" else path
        pixels = {"size": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3}
        section = InputSection(where, kind, **more)
        known = pixels if kind == "images" else {"token_types": True} if pairs else None
        source = open_input(section, TOKENIZER, known, config, pairs=pairs, ranked=pairs)
        for start in range(0, min(source.n_items, 64), 2):
            source.batch(start, min(start + 2, source.n_items))

    return read


def read_template(path: Path) -> None:
    found, _ = read_chat_template(path.parent)
    template = ChatTemplate({"chat_template": found, "special_tokens": {"bos_token": "<s>"}})
    template.render([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}])


def read_messages(path: Path) -> None:
    keeps = {"chat_template": fuzz_files.CHAT_TEMPLATE, "special_tokens": {"bos_token": "<s>"}}
    source = open_input(InputSection(path, "text"), TOKENIZER, keeps, fuzz_files.LLAMA, prompts=True)
    for i in range(source.n_items):
        source.batch(i, i + 1)


def read_results(path: Path) -> None:
    info.describe(path)
    if results.finished_summary(path, fuzz_files.STATE) is None:
        raise AssertionError("there is a file")
    merge.merge([path], path.parent / "out" / "merged.h5")


def read_parts(path: Path) -> None:
    """A resumed run: what is damaged is made again."""
    output = path.parent.parent / "begun.h5"
    results.recorded_choices(output)
    again = results.Results(output, fuzz_files.STATE, range(6), 2, True)
    for part in again.pending():
        first, last = again.span(part)
        again.write(part, {"embedding": np.zeros((last - first, 4), np.float32)}, {"choices": {}})
    again.join({"choices": {}, "versions": {}}, {})
    again.close()


BYTES, JSON, LINES, HDF5 = (
    fuzz_damage.damage_bytes,
    fuzz_damage.damage_json,
    fuzz_damage.damage_lines,
    fuzz_damage.damage_hdf5,
)
BERT, LLAMA, VIT, PAIRS = fuzz_files.BERT, fuzz_files.LLAMA, fuzz_files.VIT, fuzz_files.PAIRS
#: name -> file, how it is damaged, who reads it
TARGETS: dict[str, tuple[str, tuple[fuzz_damage.Damage, ...], Read]] = {
    "model": ("model.h5", (BYTES, HDF5, HDF5, HDF5), read_model),
    "model-vit": ("vit.h5", (BYTES, HDF5, HDF5), read_model),
    "model-llama": ("llama.h5", (BYTES, HDF5, HDF5), read_model),
    "model-encoder": ("encoder.h5", (BYTES, HDF5, HDF5), read_model),
    "model-pairs": ("pairs.h5", (BYTES, HDF5, HDF5), read_model),
    "codebooks": ("codebooks.h5", (BYTES, HDF5), read_codebooks),
    "results": ("done.h5", (BYTES, HDF5), read_results),
    "part": ("begun.h5.parts/part-00000001.h5", (BYTES, HDF5), read_parts),
    "state": ("begun.h5.parts/state.json", (BYTES, JSON), read_parts),
    "deck": ("deck.toml", (BYTES, LINES, LINES), deck.load_deck),
    "sweep-deck": ("sweep.toml", (BYTES, LINES, LINES), sweep_deck.load_sweep),
    "train-deck": ("train.toml", (BYTES, LINES, LINES), load_train_deck),
    "npz": ("tokens.npz", (BYTES,), read_input("tokens", BERT, mask="lengths")),
    "npz-packed": ("packed.npz", (BYTES,), read_input("tokens", BERT, mask="lengths")),
    "npz-images": ("images.npz", (BYTES,), read_input("images", VIT, labels="labels")),
    "npy": ("tokens.npy", (BYTES,), read_input("tokens", BERT)),
    "h5-tokens": ("tokens.h5", (BYTES, HDF5, HDF5), read_input("tokens", BERT, mask="lengths")),
    "h5-images": ("images.h5", (BYTES, HDF5, HDF5), read_input("images", VIT, labels="labels")),
    "jsonl": ("texts.jsonl", (BYTES, LINES), read_input("text", BERT, labels="label")),
    "pairs": ("pairs.jsonl", (BYTES, LINES), read_input("text", PAIRS, True)),
    "tsv": ("texts.tsv", (BYTES, LINES), read_input("text", BERT, labels="label")),
    "txt": ("texts.txt", (BYTES, LINES), read_input("text", BERT)),
    "png": ("pictures/0.png", (BYTES,), read_input("images", VIT, labels="classes.tsv")),
    "jpeg": ("pictures/1.jpg", (BYTES,), read_input("images", VIT, labels="classes.tsv")),
    "picture-classes": ("pictures/classes.tsv", (BYTES, LINES), read_input("images", VIT, labels="classes.tsv")),
    "messages": ("talks.jsonl", (BYTES, LINES), read_messages),
    "chat-template": ("chat/chat_template.jinja", (BYTES, LINES), read_template),
    "trace": ("trace.csv", (BYTES, LINES), lambda path: network.parse_network(f"trace:{path}")),
    "profile": ("profile.json", (BYTES, JSON), lambda path: planner_inputs.read_profile(str(path), "int8")),
    "llama2c": ("llama.bin", (BYTES,), lambda path: llama2c.convert_llama2c(path, path.parent / "tokenizer.bin")),
    "llama2c-tokenizer": (
        "tokenizer.bin",
        (BYTES,),
        lambda path: llama2c.convert_llama2c(path.parent / "llama.bin", path),
    ),
    "gguf": ("llama.gguf", (BYTES, fuzz_gguf.damage_gguf), read_gguf),
    "hf-config": ("hf/config.json", (BYTES, JSON, JSON), lambda path: convert.convert(path.parent)),
    "hf-safetensors": ("hf/model.safetensors", (BYTES,), lambda path: convert.convert(path.parent)),
    "hf-tokenizer": ("hf/tokenizer.json", (BYTES, JSON, JSON), lambda path: convert.convert(path.parent)),
    "hf-modules": ("hf/modules.json", (BYTES, JSON), lambda path: convert.convert(path.parent)),
    "hf-limits": ("hf/tokenizer_config.json", (BYTES, JSON), lambda path: convert.convert(path.parent)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=12000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one; for several of these at once")
    parser.add_argument("--seed", type=int, help="only this case, and tell what it does")
    parser.add_argument("--only", metavar="A,B", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--folder", type=Path, default=Path("work/fuzz"))
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(TARGETS)
    prepare(args.folder / "valid")
    if args.seed is not None:
        print(json.dumps(case(args.folder, names, args.seed), indent=2))
        return 0
    progress = args.folder / "progress.json"
    told = json.loads(progress.read_text()) if progress.exists() else {"names": names, "next": args.first, "ends": {}}
    if told["names"] != names:
        print(f"{progress} is of other targets; remove it", file=sys.stderr)
        return 2
    ends = collections.Counter(told["ends"])
    end = args.first + args.cases
    while told["next"] < end:
        seeds = range(told["next"], min(told["next"] + 100, end))
        outcomes = [case(args.folder, names, seed) for seed in seeds]
        ends.update(f"{outcome['target']}: {outcome['end']}" for outcome in outcomes)
        with (args.folder / "findings.jsonl").open("a") as file:
            file.writelines(json.dumps(o) + "\n" for o in outcomes if o["finding"])
        told = {"names": names, "next": seeds.stop, "ends": dict(ends)}
        progress.write_text(json.dumps(told))
    return summary(args.folder, told, args.cases)


def summary(folder: Path, told: dict[str, Any], n_cases: int) -> int:
    findings = [json.loads(line) for line in (folder / "findings.jsonl").read_text().splitlines()]
    print(f"{'target':<20}{'accepted':>10}{'refused':>10}{'findings':>10}")
    total: collections.Counter[str] = collections.Counter()
    for name in told["names"]:
        row = {end: told["ends"].get(f"{name}: {end}", 0) for end in ("accepted", "refused")}
        row["findings"] = sum(finding["target"] == name for finding in findings)
        total.update(row)
        print(f"{name:<20}{row['accepted']:>10}{row['refused']:>10}{row['findings']:>10}")
    print(f"{'all':<20}{total['accepted']:>10}{total['refused']:>10}{total['findings']:>10}")
    print(json.dumps({"files": n_cases, **total}))
    return 1 if findings else 0


def prepare(folder: Path) -> None:
    """Valid files, and a check that they are accepted."""
    if not folder.exists():
        folder.mkdir(parents=True)
        fuzz_files.write_all(folder)
    set_threads(1)


def case(folder: Path, names: list[str], seed: int) -> dict[str, Any]:
    """One damaged file, read in a process of its own."""
    draw = random.Random(seed)
    target = names[draw.randrange(len(names))]
    file, damages, read = TARGETS[target]
    there = folder / "case"
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(folder / "valid", there)
    (there / "out").mkdir()
    path = (there / file).resolve()
    damage = draw.choice(damages)
    try:
        path.write_bytes(damage(path.read_bytes(), draw))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as exc:  # HDF5 will not write what was asked for
        return {"seed": seed, "target": target, "end": "not written", "text": str(exc), "finding": False}
    before = listing(there)
    outcome = apart(read, path)
    added = sorted(set(listing(there)) - set(before) - ALLOWED)
    if added:
        outcome = {"end": "wrote " + added[0], "text": outcome["text"], "finding": True}
    return {"seed": seed, "target": target, "damage": damage.__name__, **outcome}


ALLOWED = {"begun.h5"}


def listing(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return [name for name in names if not name.startswith(("out/", "begun.h5.parts/"))]


def apart(read: Read, path: Path) -> dict[str, Any]:
    """`read(path)` in a fork -> its end, what it said, and whether that is a finding."""
    inlet, outlet = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(inlet)
        told = inside(read, path)
        os.write(outlet, json.dumps(told).encode()[:60000])
        os._exit(0)
    os.close(outlet)
    end_s = time.monotonic() + WALL_S
    status = None
    while status is None:
        done, status_now = os.waitpid(pid, os.WNOHANG)
        if done:
            status = status_now
        elif time.monotonic() > end_s:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(inlet)
            return {"end": "hang", "text": f"after {WALL_S} s", "finding": True}
        else:
            time.sleep(0.001)
    with os.fdopen(inlet) as file:
        text = file.read()
    if os.WIFSIGNALED(status):
        return {"end": f"signal {os.WTERMSIG(status)}", "text": text, "finding": True}
    if os.WEXITSTATUS(status) == 2 and not text:
        return {
            "end": "refused",
            "text": "HDF5 did not come back and was ended (astra_mpi/files/stuck.py)",
            "finding": False,
        }
    outcome: dict[str, Any] = json.loads(text)
    return outcome


def inside(read: Read, path: Path) -> dict[str, Any]:
    """In the fork."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    witness.READING_S = CPU_S / 2
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    n_bytes = path.stat().st_size
    watch = Watch(path.parents[1] if path.parent.name in ("hf", "pictures", "begun.h5.parts") else path.parent)
    first = peak_bytes()
    end, text, finding = "accepted", "", False
    try:
        read(path)
    except AstraError as exc:
        end, text = "refused", str(exc)
        if "MemoryError" in repr(exc.__cause__) or "\n" in text:
            end, finding = "refused for lack of memory" if "\n" not in text else "refused in several lines", True
    except BaseException as exc:
        end, text, finding = type(exc).__name__, str(exc)[:500], True
    if watch.seen:
        end, text, finding = watch.seen[0], text, True
    grown = peak_bytes() - first
    if grown > MEMORY_BYTES + PER_FILE_BYTE * n_bytes:
        end, finding = f"memory: {grown >> 20} MiB for {n_bytes} bytes", True
    return {"end": end, "text": text[:2000], "finding": finding}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class Watch:
    """What the audit hook of this process has seen that it must not see."""

    def __init__(self, there: Path) -> None:
        self.seen: list[str] = []
        self._allowed = (str(there / "out"), str(there / "begun.h5"), str(there / ".begun"), os.devnull)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes):
            mode, flags = args[1], args[2]
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if writes and not os.fsdecode(args[0]).startswith(self._allowed):
                self.seen.append(f"opened {args[0]!r} for writing")
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"):
            if not _path(args).startswith(self._allowed):
                self.seen.append(f"{event} {args[0]!r}")
        elif event in (
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "subprocess.Popen",
            "socket.connect",
            "pickle.find_class",
        ):
            self.seen.append(event)


def _path(args: tuple[Any, ...]) -> str:
    """What a call is about: a path, an open file, or a name in an open folder."""
    if isinstance(args[0], int):
        return os.readlink(f"/proc/self/fd/{args[0]}")
    name = os.fsdecode(args[0])
    inside = len(args) > 1 and isinstance(args[-1], int) and args[-1] >= 0 and not os.path.isabs(name)
    return os.path.join(os.readlink(f"/proc/self/fd/{args[-1]}"), name) if inside else name


BACKEND = get_backend("numpy", MPI.COMM_SELF)
TOKENIZER = fuzz_files.tokenizer_json()

if __name__ == "__main__":
    sys.exit(main())
