"""Other libraries at work: silent, and what they raise as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from astra_mpi.errors import InputError


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' bars of progress, which other code of this process may want."""
    from transformers.utils import logging

    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()


@contextmanager
def reads(what: str, library: str = "transformers") -> Iterator[None]:
    """Whatever the library raises as InputError: without its answer there is no check."""
    try:
        yield
    except Exception as exc:  # the library raises what it likes
        raise InputError(f"{library} cannot read {what} ({first_line(exc)}); convert without --check") from exc


def first_line(exc: BaseException) -> str:
    """What an exception of another library says, in one line."""
    return f"{type(exc).__name__}: {next(iter(str(exc).splitlines()), '')}"
