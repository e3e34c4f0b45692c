"""Where short-lived files go."""

from __future__ import annotations

import tempfile
from pathlib import Path

from astra_mpi.errors import InputError


def temporary_folder() -> Path:
    """Where short-lived files go. InputError if there is no such place, as in a container that is read-only."""
    try:
        return Path(tempfile.gettempdir())
    except OSError as exc:
        raise InputError("no folder for temporary files can be written; set TMPDIR to one, such as /dev/shm") from exc
