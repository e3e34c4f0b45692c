"""A sweep: every point of a deck measured by its own launch of `astra-mpi bench`, kept, and put together at the end."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_mpi.errors import InputError
from astra_mpi.files import whole
from astra_mpi.job.lock import Lock
from astra_mpi.measure.sweep.deck import SweepDeck
from astra_mpi.measure.sweep.models import Models, Prepared
from astra_mpi.measure.sweep.points import Point, Store, key_of, points, settings_of
from astra_mpi.measure.sweep.process import ProgramError, run_program
from astra_mpi.measure.sweep.progress import SweepProgress
from astra_mpi.measure.sweep.result import Record, together
from astra_mpi.network.units import duration_s
from astra_mpi.ranks.signals import Interrupted, StopRequests

FINAL = 2  # the exit code of wrong use: a point that failed with it would fail again


@dataclass(frozen=True)
class Task:
    """A point with the files it is measured on and the name it is kept under."""

    point: Point
    files: Prepared
    settings: dict[str, Any]
    key: str


def run_sweep(deck: SweepDeck, retry: bool = False) -> dict[str, Any]:
    """Measure what is missing; -> {"runs", "failures", "deck", ..}, the runs as `astra-mpi bench --json` has them.

    retry: measure points again that failed for good. Points that failed otherwise are always tried again. Interrupted
    on Ctrl-C or SIGTERM; InputError on what stops every point.
    """
    launcher = find_launcher(deck.launch.launcher)
    wanted, folder = points(deck), deck.beside(".points")
    with StopRequests() as stop, _locked(folder):
        store, models = Store(folder), Models(deck, folder / "models", stop)
        store.clean()
        tasks = [_task(deck, point, models(point)) for point in wanted if not stop.signum]
        known = {task.key: kept for task in tasks if (kept := store.get(task.key)) and _stands(kept, retry)}
        _check_stop(stop, known)
        todo = list({task.key: task for task in tasks if task.key not in known}.values())
        if known:
            print(f"{len(known)} points are there already", file=sys.stderr, flush=True)
        bar = SweepProgress([float(task.point.tokens or 1) for task in todo], len(known) + len(todo))
        try:
            for task in todo:
                record = _measure(deck, task, launcher, store, stop)
                _check_stop(stop, known)
                store.put(task.key, record)
                known[task.key] = record
                bar.done(f"{task.point}: {_outcome(record)}")
        finally:
            bar.close()
    return together(deck, [(task.point, known[task.key]) for task in tasks])


def _check_stop(stop: StopRequests, known: dict[str, Record]) -> None:
    if stop.signum:
        raise Interrupted(f"interrupted; {len(known)} points are kept, the same command goes on", stop.signum)


def find_launcher(launcher: str) -> list[str]:
    """Its words, the first one as a path: beside this Python, else in PATH. InputError if it is in neither."""
    first, *rest = shlex.split(launcher)
    found = shutil.which(first, path=str(Path(sys.executable).parent)) or shutil.which(first)
    if found is None:
        raise InputError(
            f"launch.launcher: '{first}' is not found; install it, or name another such as srun -n {{ranks}}"
        )
    return [found, *rest]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    whole.make_folder(folder / "models")
    lock = Lock(folder / "lock")
    try:
        yield
    finally:
        lock.release()


def _task(deck: SweepDeck, point: Point, files: Prepared) -> Task:
    settings = settings_of(deck, point, files.digests(point))
    return Task(point, files, settings, key_of(settings))


def _stands(record: Record, retry: bool) -> bool:
    return "runs" in record or (record.get("exit_code") == FINAL and not retry)


def _measure(deck: SweepDeck, task: Task, launcher: list[str], store: Store, stop: StopRequests) -> Record:
    """The point's record: what bench wrote, or the sentence it failed with."""
    path = store.temporary(task.key)
    try:
        if task.files.failure:
            raise ProgramError(task.files.failure, 3)
        command = [word.format(ranks=task.point.ranks) for word in launcher]
        command += [sys.executable, "-m", "astra_mpi", "bench", *_options(deck, task), "--json", str(path)]
        run_program(command, stop, duration_s(deck.launch.limit) if deck.launch.limit else None)
        return {"settings": task.settings, **json.loads(path.read_text(encoding="utf-8"))}
    except ProgramError as exc:
        return {"settings": task.settings, "failure": str(exc), "exit_code": exc.exit_code}
    except (OSError, ValueError) as exc:
        return {"settings": task.settings, "failure": f"bench left no figures ({exc})", "exit_code": 3}
    finally:
        path.unlink(missing_ok=True)


def _options(deck: SweepDeck, task: Task) -> list[str]:
    point, sweep = task.point, deck.sweep
    strategies = dict.fromkeys(("single", point.strategy))  # single first: speed-ups are over it, in turns
    options = {
        "strategies": ",".join(strategies),
        "codebooks": task.files.codebooks if point.codec else None,
        "tokens": point.tokens,
        "network": point.network,
        "counted-keys": "on" if sweep.counted_keys else "off",
        "batch": deck.model.batch,
        "speed": sweep.speed,
        **{name: getattr(sweep, name) for name in ("clock", "accounting", "repeats", "warmup", "seed", "backend")},
        "compute": sweep.compute,
        "threads": sweep.threads,
    }
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return [str(task.files.path), *given]


def _outcome(record: Record) -> str:
    if "failure" in record:
        return f"failed: {record['failure']}"
    run = record["runs"][-1]
    return f"{1e3 * run['latency_s']['total']:.4g} ms, {run['spread']['over_first']:.3g}x"
