"""The errors a user can meet, and how one rank's error becomes every rank's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI


class AstraError(Exception):
    """A failure while running (exit code 3). The message is one sentence with the cure."""

    exit_code = 3
    #: set once every rank of a communicator has raised the same error
    collective = False


class InputError(AstraError):
    """Wrong use or wrong input (exit code 2): names the file or the key, and the cure."""

    exit_code = 2


class VerifyError(AstraError):
    """`verify` or `convert --check` found a disagreement (exit code 4)."""

    exit_code = 4


class ReaderGone(AstraError):
    """Whoever read standard output has gone, as `head` does: the end is silent, with what SIGPIPE would give (141)."""

    exit_code = 141


_KINDS: tuple[type[AstraError], ...] = (AstraError, InputError, VerifyError, ReaderGone)


@contextmanager
def collective(comm: MPI.Comm) -> Iterator[None]:
    """Run the body on every rank; if it fails on any, raise the same error on all.

    The body must not communicate over `comm` after a point where one rank alone can fail. The lowest failing
    rank's message is raised everywhere; an exception that is not an `AstraError` becomes one, with its cause kept
    on the rank where it happened. Costs one Allreduce of 4 bytes, more only after a failure.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as exc:
        failure = exc
    raise_together(comm, failure)


@contextmanager
def collective_steps(comm: MPI.Comm) -> Iterator[None]:
    """`collective` for a body that communicates: if it fails on any rank, raise the same error on all, once.

    Before ranks wait for each other, the body must go through `collective(comm)`, and nothing between that and the
    wait may fail: there the others hear of a rank that has failed since.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as exc:
        if getattr(exc, "collective", False):
            raise
        failure = exc
    raise_together(comm, failure)


def raise_together(comm: MPI.Comm, failure: Exception | None) -> None:
    """Collective: raise on all ranks what the lowest failing rank passes in; return if no rank fails."""
    import numpy as np  # here, since `--help` does without it

    size = comm.Get_size()
    mine = np.array([size if failure is None else comm.Get_rank()], dtype=np.int32)
    first = np.empty_like(mine)
    comm.Allreduce(mine, first, op=_minimum())
    if first[0] == size:
        return
    error = _broadcast_error(comm, int(first[0]), failure)
    error.collective = True
    raise error from failure


def same_on_all(error: AstraError) -> AstraError:
    """Mark an error that every rank raises because all saw the same evidence."""
    error.collective = True
    return error


def _broadcast_error(comm: MPI.Comm, root: int, failure: Exception | None) -> AstraError:
    import numpy as np

    header = np.zeros(2, dtype=np.int32)
    text = b""
    if comm.Get_rank() == root:
        assert failure is not None
        known = type(failure) in _KINDS
        message = str(failure) if known else f"{type(failure).__name__}: {failure}"
        number = (getattr(comm, "numbers", None) or range(root + 1))[root]  # of a part of the job, in all of it
        if number > 0 and not message.startswith("rank "):
            message = f"rank {number}: {message}"
        text = message.encode(errors="backslashreplace")  # names of files may not be Unicode
        header[:] = _KINDS.index(type(failure)) if known else 0, len(text)
    comm.Bcast(header, root=root)
    buffer = np.frombuffer(text, dtype=np.uint8).copy() if text else np.empty(header[1], dtype=np.uint8)
    comm.Bcast(buffer, root=root)
    return _KINDS[header[0]](buffer.tobytes().decode())


def _minimum() -> MPI.Op:
    from mpi4py import MPI

    return MPI.MIN


def some(names: list[str], limit: int = 20) -> str:
    """The names; where they are many, the first ones and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"
