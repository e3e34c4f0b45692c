"""Results of a batch job: one HDF5 part per finished batch, joined at the end. Only one rank has a `Results`.

`<output>.parts/` holds `lock`, `state.json` and `part-<batch>.h5`; a file is whole or absent.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.files import checksum, hdf5, whole
from astra_mpi.files.stuck import bounded
from astra_mpi.job.lock import Lock
from astra_mpi.job.ranking import write_ranks

#: parts of the state that results of earlier versions do not have
LATER = ("text_digest",)
#: the same, and what they were when nobody could say it
ONCE = {
    "parallel.compute": "float32",
    "parallel.grid": None,
    "parallel.stages": "auto",
    "parallel.handed_on": "float16",
    "parallel.halves": "auto",
}


def parts_folder(output: Path) -> Path:
    return output.with_name(output.name + ".parts")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Whole or not at all, like the HDF5 files. AstraError if it cannot be written."""
    whole.write_text(path, json.dumps(values, indent=2) + "\n", mark="")  # a killed run's is written over


def summary_path(output: Path) -> Path:
    """Where the summary of results goes."""
    return output.with_suffix(".json")


def check_summary(output: Path) -> None:
    """InputError if the summary of `output` would take the place of the results, or of a file that is no summary."""
    path = summary_path(output)
    require(path != output, f"{output} is where the summary goes; give results another ending, such as .h5")
    if not path.exists():
        return
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    require(
        isinstance(found, dict) and "astra_mpi" in found,
        f"{path} exists and is no summary of astra-mpi, whose place that is; move it, or give another output",
    )


def check_room(output: Path) -> None:
    """InputError, before any work, if results cannot be written to `output`; AstraError where the disk is full."""
    _recorded(output)
    check_summary(output)
    whole.make_folder(output.parent)
    whole.check_place(output)


def remove_leftovers(output: Path) -> None:
    """Parts beside finished results: a run ended while it removed them. Those of a run at work stay."""
    folder = parts_folder(output)
    if not folder.is_dir():
        return
    with suppress(OSError, InputError):
        lock = Lock(folder / "lock")
        _remove_parts(folder, lock)


def _remove_parts(folder: Path, lock: Lock) -> None:
    """What cannot be removed stays, for the next run of this job: the results are whole."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path != lock.path:  # which goes last
                path.unlink(missing_ok=True)
    lock.release()
    with suppress(OSError):  # another run may have begun here
        folder.rmdir()


def finished_summary(output: Path, state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary inside `output` if it holds the finished results of this very job; None if there is no such file.

    InputError if it holds results of other settings, or is damaged.
    """
    recorded = _recorded(output)
    if recorded is None:
        return None
    try:
        before, summary = json.loads(recorded["state"]), json.loads(recorded["summary"])
        if not (isinstance(before, dict) and isinstance(summary, dict)):
            raise ValueError("no JSON objects")
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"{output} is damaged ({exc}); remove it, or give another output.path") from exc
    _check_same(state, before, output)
    with hdf5.reading(output) as file:
        checksum.require_whole(file, "remove it, or make it anew with run.resume=false")
    return summary


def recorded_choices(output: Path) -> dict[str, Any]:
    """Choices made by timing in the finished batches of an unfinished job; nothing if there are none."""
    for part in sorted(parts_folder(output).glob("part-*.h5")):
        report = _report(part, checked=True)
        if report is not None:
            choices: dict[str, Any] = report.get("choices", {})
            return choices
    return {}


def recorded_job(output: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of the job at `output`, finished or not, and the choices it made. InputError where there is none."""
    recorded = _recorded(output)
    if recorded is None:
        return _read_state(parts_folder(output) / "state.json"), recorded_choices(output)
    try:
        state, choices = json.loads(recorded["state"]), json.loads(recorded["choices"])
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"{output} is damaged ({exc}); remove it, or give another output.path") from exc
    return state, choices


class Results:
    """The growing results of one job. It holds the lock of the parts folder until `close`.

    output: the HDF5 file to make. state: all that must not change between a run and its resumption. items: the numbers
    of these items in the input; a part holds `batch` of them. resume: keep finished parts. InputError if another run is
    at work, or if the parts are of another state.
    """

    def __init__(self, output: Path, state: Mapping[str, Any], items: range, batch: int, resume: bool) -> None:
        self.output, self.state, self.folder = output, state, parts_folder(output)
        self.items, self.n_items, self.batch = items, len(items), batch
        self.n_parts = -(-self.n_items // batch)
        _recorded(output)  # refuse early what may not be replaced
        whole.make_folder(self.folder)
        self.lock = Lock(self.folder / "lock")
        try:
            self._open(resume)
            with bounded(str(self.folder)):
                self.finished = {i for i in range(self.n_parts) if self._is_whole(i)}
        except BaseException:
            self.lock.release()
            raise

    def close(self) -> None:
        """Let go of the parts folder."""
        self.lock.release()

    def span(self, part: int) -> tuple[int, int]:
        """First item of a part, and the one after its last."""
        return part * self.batch, min((part + 1) * self.batch, self.n_items)

    def pending(self) -> list[int]:
        """Parts not yet written, in order."""
        return [i for i in range(self.n_parts) if i not in self.finished]

    def write(self, part: int, outputs: Mapping[str, np.ndarray], report: Mapping[str, Any]) -> None:
        """Keep the outputs of one part, name -> (items, ...), and the model's report on it."""
        self.lock.beat()
        with hdf5.writing(self._part(part)) as file:
            file.attrs["report"] = json.dumps(report)
            file["inputs/index"] = np.array(self.items[slice(*self.span(part))], dtype=np.int64)
            for name, values in outputs.items():
                file[f"outputs/{name}"] = values
        self.finished.add(part)

    def join(self, summary: Mapping[str, Any], deck: Mapping[str, Any]) -> None:
        """All parts -> `output` in input order; removes the parts. InputError if one is damaged: nothing is joined."""
        self.lock.beat()
        with hdf5.writing(self.output) as file:
            file.attrs["format"] = hdf5.RESULTS
            file.attrs["version"] = hdf5.VERSION
            for name in ("model_digest", "codec_digest"):
                file.attrs[name] = self.state[name]
            for name in ("choices", "versions"):
                file.attrs[name] = json.dumps(summary[name])
            file.attrs["deck"] = json.dumps(deck)
            file.attrs["state"] = json.dumps(self.state)
            if self.state.get("labels"):
                file.attrs["labels"] = json.dumps(self.state["labels"])
            file.attrs["summary"] = json.dumps(summary)
            for part in range(self.n_parts):
                self._append(file, part)
                file.check()
            write_ranks(file)
            self.lock.beat()  # it took long, perhaps
        _remove_parts(self.folder, self.lock)

    def reports(self) -> Iterator[dict[str, Any]]:
        """The model's reports on all parts, read one at a time."""
        for part in range(self.n_parts):
            report = _report(self._part(part))
            require(report is not None, f"{self._part(part)} is gone or damaged; the same command makes it again")
            assert report is not None
            yield report

    def outputs(self, name: str) -> np.ndarray:
        """One output of all items, (n_items, ...)."""
        parts = []
        for part in range(self.n_parts):
            with hdf5.reading(self._part(part)) as file:
                parts.append(file[f"outputs/{name}"][()])
        return np.concatenate(parts)

    def _append(self, file: h5py.File, part: int) -> None:
        start, stop = self.span(part)
        with hdf5.reading(self._part(part)) as piece:
            checksum.require_whole(piece, "the same command makes it again")
            for name in ["inputs/index", *(f"outputs/{output}" for output in piece["outputs"])]:
                values = piece[name]
                whole = file.require_dataset(name, (self.n_items, *values.shape[1:]), values.dtype)
                whole[start:stop] = values[()]

    def _is_whole(self, part: int) -> bool:
        """Whether a part is there, and holds these items' outputs; else it is made again."""
        index = np.array(self.items[slice(*self.span(part))], dtype=np.int64)
        try:
            with hdf5.reading(self._part(part)) as file:
                if _report_in(file) is None:
                    return False
                found = hdf5.dataset(hdf5.group(file, "inputs"), "index", ("int64",))
                group = hdf5.group(file, "outputs")
                outputs = [hdf5.stored(group, name) for name in group]
                rows = {item.shape[0] if item.shape else 0 for item in outputs}
                if rows != {len(index)} or not np.array_equal(hdf5.read(found, "int64"), index):
                    return False
                return checksum.fits(file) is not False  # parts of earlier versions have none
        except InputError:
            return False

    def _part(self, part: int) -> Path:
        return self.folder / f"part-{part:08d}.h5"

    def _open(self, resume: bool) -> None:
        """Check the state of the parts that are there, or start anew."""
        path = self.folder / "state.json"
        if resume and path.exists():
            _check_same(self.state, _read_state(path), self.folder)
        else:
            kept = sorted(self.folder.glob("part-*"))
            require(
                not (resume and kept),
                f"{self.folder} has finished parts, but no state.json to say of which; run.resume=false discards them",
            )
            for part in kept:
                part.unlink()
            write_json(path, self.state)
        self._tidy()

    def _tidy(self) -> None:
        """Remove what killed runs were writing: this run holds the lock, so nobody writes it any more."""
        mine = self.lock.path.name, f"{self.lock.path.name}.{self.lock.token}"
        for path in [*self.folder.glob(".*.tmp"), *self.folder.glob("lock.*")]:
            if path.name not in mine:
                path.unlink(missing_ok=True)
        for name in (self.output.name, self.output.with_suffix(".json").name):
            for path in self.output.parent.glob(f".{glob.escape(name)}.*.tmp"):
                path.unlink(missing_ok=True)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise InputError(f"{path} is damaged; discard the parts beside it with run.resume=false")
    return state


def _recorded(output: Path) -> dict[str, str] | None:
    """Attributes of finished results; None without a file. InputError if it is a file of another kind."""
    if not output.exists():
        return None
    try:
        with hdf5.reading(output) as file:
            recorded = dict(file.attrs)
    except InputError:
        recorded = {}
    require(
        recorded.get("format") == hdf5.RESULTS,
        f"{output} exists and holds no results of astra-mpi; give another output.path",
    )
    return recorded


def _check_same(state: Mapping[str, Any], recorded: Mapping[str, Any], where: Path) -> None:
    state, recorded = ONCE | json.loads(json.dumps(state)), ONCE | dict(recorded)
    known = {*state, *recorded} - {key for key in LATER if key not in recorded}
    changed = sorted(key for key in known if state.get(key) != recorded.get(key))
    if changed:
        key = changed[0]
        raise InputError(
            f"{where} holds results with {key} = {recorded.get(key)!r}, now it is {state.get(key)!r}; "
            "go back to that, give another output.path, or discard them with run.resume=false"
        )


def _report(part: Path, checked: bool = False) -> dict[str, Any] | None:
    """The report in a part; None if the part is not there or cannot be read, and is to be made again.

    checked: also None if the part is not as it was written.
    """
    try:
        with hdf5.reading(part) as file:
            return None if checked and checksum.fits(file) is False else _report_in(file)
    except InputError:
        return None


def _report_in(file: h5py.File) -> dict[str, Any] | None:
    try:
        report = json.loads(file.attrs["report"])
    except RecursionError:
        return None
    return report if isinstance(report, dict) else None
