"""Where a file came from, recorded inside it."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import h5py

from astra_mpi.files import hdf5
from astra_mpi.version import __version__

_LIBRARIES = ("numpy", "h5py", "tokenizers")


def provenance(command: str, **facts: str) -> dict[str, str]:
    """The command, the versions that ran it, the date (UTC), and further facts. No absolute paths, please."""
    versions = {"astra_mpi": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": command, "date": date, "versions": json.dumps(versions), **facts}


def write_provenance(file: h5py.File, facts: dict[str, str]) -> None:
    file.create_group("provenance").attrs.update(facts)


def read_provenance(file: h5py.File) -> dict[str, str]:
    """The facts; none if the file has none."""
    if "provenance" not in file:
        return {}
    group = hdf5.group(file, "provenance")
    return {name: hdf5.text(group, name) for name in group.attrs}
