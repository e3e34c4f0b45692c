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
from astra_mpi.job.recorded import (
    attributes_of,
    check_same,
    check_summary,
    parts_folder,
    read_state,
    report_in,
    report_of,
)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Whole or not at all, like the HDF5 files. AstraError if it cannot be written."""
    whole.write_text(path, json.dumps(values, indent=2) + "\n", mark="")  # a killed run's is written over


def check_room(output: Path) -> None:
    """InputError, before any work, if results cannot be written to `output`; AstraError where the disk is full."""
    attributes_of(output)
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
        attributes_of(output)  # refuse early what may not be replaced
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
            report = report_of(self._part(part))
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
                if report_in(file) is None:
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
            check_same(self.state, read_state(path), self.folder)
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
