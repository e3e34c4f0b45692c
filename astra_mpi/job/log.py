"""One line per event: when, how grave, on which rank, at which batch, and what happened."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

from astra_mpi.files import whole

LEVELS = ("debug", "info", "warning", "error")
_LOG = logging.getLogger("astra_mpi")
_LOG.addHandler(logging.NullHandler())


class _Line(logging.Formatter):
    """2026-01-31T12:00:00.000Z INFO rank 3 batch 17: finished, items 8"""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, rank: int) -> None:
        super().__init__("%(asctime)s %(levelname)s rank %(rank)s batch %(batch)s: %(message)s")
        self._defaults = {"rank": rank, "batch": "-"}

    def format(self, record: logging.LogRecord) -> str:
        for name, value in self._defaults.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return super().format(record)


class _Lines(logging.Handler):
    """Appends to a file. Where that fails, the log ends, and the job goes on: one line on stderr says so."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        whole.make_folder(folder)
        self._path = folder / name
        whole.append(self._path, "")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            whole.append(self._path, self.format(record) + "\n")
        except Exception as exc:
            _LOG.removeHandler(self)
            print(f"astra-mpi: {exc}; this log ends here, the job goes on", file=sys.stderr, flush=True)


def configure(rank: int, level: str | None, folder: str | None) -> None:
    """Where this process's events go: nowhere; to a file of this rank in `folder`, appended; or to stderr.

    To stderr go all events of rank 0 from `level` on, and warnings and errors of the other ranks. Default level: info.
    AstraError if the folder cannot be written.
    """
    if level is None and folder is None:
        return
    number = getattr(logging, (level or "info").upper())
    handler: logging.Handler
    if folder is None:
        handler = logging.StreamHandler()
        handler.setLevel(number if rank == 0 else max(number, logging.WARNING))
    else:
        handler = _Lines(Path(folder), f"rank-{rank:04d}.log")
    handler.setFormatter(_Line(rank))
    _LOG.addHandler(handler)
    _LOG.setLevel(number)
    _LOG.propagate = False


def event(what: str, *, batch: int | None = None, level: int = logging.INFO, **facts: Any) -> None:
    """Log that something happened. batch: its number from 1. facts: named values, units in their names."""
    if _LOG.isEnabledFor(level):
        words = [what, *(f"{name} {_shown(value)}" for name, value in facts.items() if value is not None)]
        _LOG.log(level, "%s", ", ".join(words), extra={} if batch is None else {"batch": batch})


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("\n", " ")
