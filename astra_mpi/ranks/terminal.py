"""Standard output and error that may be closed, full, left by their reader, or of another encoding than the text.

Nothing that a command writes there raises: ranks would fail one by one, and a job of hours by a note. What was lost of
standard output is told in the end, by the exit code.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

from astra_mpi.errors import AstraError, ReaderGone


class _Output(io.TextIOWrapper):
    """Text of any characters; once some cannot be written, `failure` says why and the rest is dropped."""

    failure: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as exc:
            self._lose(exc)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as exc:
            self._lose(exc)

    def _lose(self, exc: OSError) -> None:
        if self.failure is None:
            self.failure = exc
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())  # or the interpreter would try again at its end
        os.close(null)


def prepare() -> None:
    """At the start of the process, before anything else is opened."""
    fill_descriptors()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _wrapped(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _wrapped(sys.stderr, 2)


def fill_descriptors() -> None:
    """The null device as descriptors 0 to 2 that are closed: or a model file would be number 1, and printed to."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def _wrapped(stream: TextIO | None, number: int) -> _Output:
    """stream: what Python made of the descriptor; None if it was closed."""
    if not isinstance(stream, io.TextIOWrapper):
        return _Output(open(number, "wb", closefd=False), "utf-8", "backslashreplace")
    errors = stream.errors if stream.errors not in ("strict", "surrogateescape") else "backslashreplace"
    how: dict[str, Any] = dict(line_buffering=stream.line_buffering, write_through=stream.write_through)
    return _Output(stream.buffer, stream.encoding, errors, **how)


def raise_if_lost(stream: Any) -> None:
    """ReaderGone if nobody reads `stream` any more, AstraError if text was lost for another reason."""
    failure = getattr(stream, "failure", None)
    if isinstance(failure, BrokenPipeError):
        raise ReaderGone("standard output has no reader any more")
    if failure is not None:
        raise AstraError(f"standard output cannot be written ({failure.strerror}); part of it is lost")


def end() -> None:
    """Write out what is left of standard output. As `raise_if_lost`."""
    if sys.stdout is not None:
        sys.stdout.flush()
    raise_if_lost(sys.stdout)
