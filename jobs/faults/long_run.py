"""A batch job that is killed again and again: same bits in the end, no batch twice, memory flat?

    python jobs/faults/long_run.py                                      # 30 minutes, 4 ranks
    python jobs/faults/long_run.py --minutes 1 --ranks 3 --items 400 --folder /tmp/long

A random model embeds random token sequences of uneven lengths, first undisturbed, then, until the time is over, as jobs
that are stopped at random moments by SIGKILL of one rank, of all ranks or of the launcher, by SIGTERM or by SIGUSR1,
and started again until they are complete. Every result is compared bit by bit with the undisturbed one; a finished
batch whose file changes afterwards, or is gone before the job is complete, is an error. The memory of every rank's
process (VmRSS of /proc/PID/status) is read once a second while it makes batches; of those that did so long enough, the
spread after the warm-up is reported. Prints one JSON line; exit code 1 if anything differs or memory is not flat.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
from job_processes import Memory, marked, of_job, ranks_of

from astra_mpi.files import whole
from astra_mpi.ranks.launch import LAUNCHER_PREFIXES

#: how far a rank's memory may spread while batch follows batch
FLAT = 0.02
BATCH = 32
#: way of stopping -> the longest time until every process had ended
LONGEST_END_S: dict[str, float] = {}
DECK = f"""
[model]
path = "model.h5"
[input]
path = "input.npz"
kind = "tokens"
mask = "lengths"
[task]
name = "embed"
[parallel]
strategy = "astra"
[run]
batch = {BATCH}
watchdog = "60s"
[output]
path = "out.h5"
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of disturbed batches (default %(default)s)")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--items", type=int, default=20000, help="sequences of a job (default %(default)s)")
    parser.add_argument("--between", type=float, nargs=2, default=(10.0, 120.0), metavar="S", help="seconds of a life")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("work/long_run"))
    args = parser.parse_args()
    draw = random.Random(args.seed)
    prepare(args.folder, args.items)
    memory = Memory()
    begin_s = time.monotonic()
    code, _, _ = run(args, "undisturbed.h5", memory)
    if code:
        return code
    undisturbed_s = time.monotonic() - begin_s
    wanted = arrays(args.folder / "undisturbed.h5")
    facts: Counter[str] = Counter()
    problems: list[str] = []
    end_s = time.monotonic() + 60 * args.minutes
    jobs = 0
    while time.monotonic() < end_s and not problems:
        name = f"disturbed-{jobs}.h5"
        problems += disturbed(args, name, draw, memory, facts, end_s)
        if (args.folder / name).exists():
            jobs += 1
            problems += [f"{name}: {key} differs" for key in differing(wanted, arrays(args.folder / name))]
            (args.folder / name).unlink()
    spreads = memory.spreads()
    grown = [f"memory of a rank spreads by {s:.1%} in {life_s:.0f} s" for s, life_s, _ in spreads if s > FLAT]
    problems += grown[:1]
    if not spreads:
        problems.append("no rank lived long enough for its memory to be judged; give more --items")
    result = {
        "ranks": args.ranks,
        "items": args.items,
        "undisturbed_s": round(undisturbed_s, 1),
        "disturbed_min": round((time.monotonic() - end_s) / 60 + args.minutes, 1),
        "complete_jobs": jobs,
        "events": dict(sorted(facts.items())),
        "longest_end_s": LONGEST_END_S,
        "problems": problems,
        "memory": {
            "processes": len(spreads),
            "worst_spread": round(max((s for s, _, _ in spreads), default=0.0), 4),
            "longest_s": round(max((life_s for _, life_s, _ in spreads), default=0.0)),
            "largest_mib": round(max((mib for _, _, mib in spreads), default=0.0), 1),
        },
    }
    whole.write_text(args.folder / "memory.json", json.dumps(memory.seen))
    print(json.dumps(result))
    return 1 if problems else 0


def prepare(folder: Path, n_items: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    ids = draw.integers(1000, 20000, (n_items, 96), dtype=np.int32)
    np.savez(folder / "input.npz", tokens=ids, lengths=draw.integers(8, 97, n_items))
    (folder / "deck.toml").write_text(DECK)
    subprocess.run(
        [*astra(), "init", "bert-tiny", "model.h5", "--tokens", "128"], cwd=folder, check=True, env=outside()
    )


def astra() -> list[str]:
    return [sys.executable, "-m", "astra_mpi"]


def outside() -> dict[str, str]:
    """The environment without a launcher's variables; Open MPI is told that more ranks than cores are meant."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_PREFIXES)}
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return plain | root | threads | {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}


def mark(args: argparse.Namespace, name: str) -> str:
    """Of the job that makes result file `name`."""
    return str(args.folder.resolve() / name)


def start(args: argparse.Namespace, name: str) -> subprocess.Popen[bytes]:
    mpirun = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or "mpirun"
    command = [mpirun, "-n", str(args.ranks), *astra(), "run", "deck.toml", f"output.path={name}"]
    with (args.folder / "log.txt").open("ab") as log:
        env = marked(outside(), mark(args, name))
        return subprocess.Popen(command, cwd=args.folder, env=env, stdout=log, stderr=log, start_new_session=True)


def run(
    args: argparse.Namespace, name: str, memory: Memory, life_s: float = 1e9
) -> tuple[int | None, dict[int, int], subprocess.Popen[bytes]]:
    """-> (exit code, or None if it is still at work after `life_s`; rank -> process; the launcher)."""
    parts = args.folder / f"{name}.parts"
    n_before, n_all = n_parts(parts), -(-args.items // BATCH)
    program = start(args, name)
    end_s = time.monotonic() + life_s
    ranks: dict[int, int] = {}
    while program.poll() is None and time.monotonic() < end_s:
        ranks = ranks_of(mark(args, name)) or ranks
        if n_before < n_parts(parts) < n_all:  # not while it loads, finds the finished batches, or joins all
            memory.look(ranks)
        time.sleep(min(1.0, max(0.0, end_s - time.monotonic())))
    return program.poll(), ranks, program


def n_parts(folder: Path) -> int:
    return sum(1 for _ in folder.glob("part-*.h5"))


def disturbed(
    args: argparse.Namespace, name: str, draw: random.Random, memory: Memory, facts: Counter[str], end_s: float
) -> list[str]:
    """Start the job, stop it somehow, until it is complete or the time is over; returns what went wrong."""
    parts = args.folder / f"{name}.parts"
    known: dict[str, tuple[int, int]] = {}
    while True:
        life_s = draw.uniform(*args.between)
        code, ranks, program = run(args, name, memory, life_s)
        if code is None:
            how = stop(program, ranks, draw)
            facts[how] += 1
            code = wait(program, mark(args, name), facts, how)
            if how in ("SIGTERM", "SIGUSR1") and code not in (0, 128 + getattr(signal, how)):
                facts[f"{how} ended with {code}"] += 1
        elif code:
            return [f"{name} ended by itself with code {code}; see log.txt"]
        if (args.folder / name).exists():
            return []
        if code == 0:
            return [f"{name} ended with code 0 and without results; see log.txt"]
        now = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in parts.glob("part-*.h5")}
        changed = [part for part, identity in known.items() if now.get(part) != identity]
        if changed:
            return [f"{name}: {changed[0]} was made twice or is gone"]
        known = now
        if time.monotonic() > end_s:
            facts["jobs cut off by the end"] += 1
            return []


def stop(program: subprocess.Popen[bytes], ranks: dict[int, int], draw: random.Random) -> str:
    """One of the ways in which jobs end before their time."""
    ways = ["SIGKILL of the launcher", "SIGTERM", "SIGUSR1"]
    how = draw.choice(["SIGKILL of one rank", "SIGKILL of all ranks", *ways] if ranks else ways)
    if how in ("SIGTERM", "SIGUSR1"):
        targets, number = [program.pid], getattr(signal, how)
    else:
        number = signal.SIGKILL
        victims = list(ranks.values())
        one = victims and [draw.choice(victims)]
        targets = {"one rank": one, "all ranks": victims, "the launcher": [program.pid]}[how.split(" of ")[1]]
    for pid in targets:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    return how


def wait(program: subprocess.Popen[bytes], job: str, facts: Counter[str], how: str) -> int:
    """Until the launcher has ended, and every process it started: a launcher that was killed leaves ranks behind.

    Whoever does not end within two minutes is killed, and that is counted.
    """
    begin_s = time.monotonic()
    try:
        code = program.wait(timeout=120)
    except subprocess.TimeoutExpired:
        facts[f"did not end after {how}"] += 1
        left = {pid: Path(f"/proc/{pid}/cmdline").read_bytes()[-60:] for pid in of_job(job)}
        print(f"still there after {how}: {left}", file=sys.stderr, flush=True)
        program.kill()
        code = program.wait()
    end_s = time.monotonic() + 120
    while left := of_job(job):
        if time.monotonic() > end_s:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    LONGEST_END_S[how] = round(max(time.monotonic() - begin_s, LONGEST_END_S.get(how, 0.0)), 1)
    return code


def arrays(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def differing(wanted: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> list[str]:
    """Names of arrays that are not the same, bit by bit."""
    return [
        name
        for name in sorted({*wanted, *got})
        if name not in wanted or name not in got or wanted[name].tobytes() != got[name].tobytes()
    ]


if __name__ == "__main__":
    sys.exit(main())
