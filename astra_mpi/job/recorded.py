"""What a batch job has left behind: finished results and their summary, or the parts and the state of one under way.

`<output>.parts/` holds `lock`, `state.json` and `part-<batch>.h5` (job/results.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.files import checksum, hdf5

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


def finished_summary(output: Path, state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary inside `output` if it holds the finished results of this very job; None if there is no such file.

    InputError if it holds results of other settings, or is damaged.
    """
    recorded = attributes_of(output)
    if recorded is None:
        return None
    try:
        before, summary = json.loads(recorded["state"]), json.loads(recorded["summary"])
        if not (isinstance(before, dict) and isinstance(summary, dict)):
            raise ValueError("no JSON objects")
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"{output} is damaged ({exc}); remove it, or give another output.path") from exc
    check_same(state, before, output)
    with hdf5.reading(output) as file:
        checksum.require_whole(file, "remove it, or make it anew with run.resume=false")
    return summary


def recorded_choices(output: Path) -> dict[str, Any]:
    """Choices made by timing in the finished batches of an unfinished job; nothing if there are none."""
    for part in sorted(parts_folder(output).glob("part-*.h5")):
        report = report_of(part, checked=True)
        if report is not None:
            choices: dict[str, Any] = report.get("choices", {})
            return choices
    return {}


def recorded_job(output: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of the job at `output`, finished or not, and the choices it made. InputError where there is none."""
    recorded = attributes_of(output)
    if recorded is None:
        return read_state(parts_folder(output) / "state.json"), recorded_choices(output)
    try:
        state, choices = json.loads(recorded["state"]), json.loads(recorded["choices"])
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"{output} is damaged ({exc}); remove it, or give another output.path") from exc
    return state, choices


def read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise InputError(f"{path} is damaged; discard the parts beside it with run.resume=false")
    return state


def attributes_of(output: Path) -> dict[str, str] | None:
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


def check_same(state: Mapping[str, Any], recorded: Mapping[str, Any], where: Path) -> None:
    state, recorded = ONCE | json.loads(json.dumps(state)), ONCE | dict(recorded)
    known = {*state, *recorded} - {key for key in LATER if key not in recorded}
    changed = sorted(key for key in known if state.get(key) != recorded.get(key))
    if changed:
        key = changed[0]
        raise InputError(
            f"{where} holds results with {key} = {recorded.get(key)!r}, now it is {state.get(key)!r}; "
            "go back to that, give another output.path, or discard them with run.resume=false"
        )


def report_of(part: Path, checked: bool = False) -> dict[str, Any] | None:
    """The report in a part; None if the part is not there or cannot be read, and is to be made again.

    checked: also None if the part is not as it was written.
    """
    try:
        with hdf5.reading(part) as file:
            return None if checked and checksum.fits(file) is False else report_in(file)
    except InputError:
        return None


def report_in(file: h5py.File) -> dict[str, Any] | None:
    try:
        report = json.loads(file.attrs["report"])
    except RecursionError:
        return None
    return report if isinstance(report, dict) else None
