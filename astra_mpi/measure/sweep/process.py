"""Another program run to its end, or ended with all it started: by a limit in time, by Ctrl-C, by SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from astra_mpi.errors import AstraError
from astra_mpi.ranks.signals import StopRequests
from astra_mpi.ranks.temporary import temporary_folder

POLL_S = 0.05
GRACE_S = 10.0  # from SIGTERM to SIGKILL: a launcher has to end its ranks
_ERROR = "astra-mpi: error: "


class ProgramError(AstraError):
    """The program failed: its own sentence, and the exit code it gave."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_program(command: Sequence[str], stop: StopRequests, limit_s: float | None = None) -> None:
    """Run `command`, its output thrown away. ProgramError if it fails, takes over `limit_s` or cannot be started.

    Returns early, with the program ended, once a stop is requested.
    """
    with tempfile.TemporaryFile(dir=temporary_folder()) as err:
        try:
            # os.environ is the environment at our own start: an MPI started here since may have added to the real one
            program = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, start_new_session=True,
                env=os.environ,
            )  # fmt: skip
        except OSError as exc:
            raise ProgramError(f"{command[0]} cannot be started ({exc.strerror})", 3) from exc
        try:
            _wait(program, stop, limit_s)
        finally:
            if program.poll() is None:
                _end(program)
        if program.returncode and not stop.signum:
            raise ProgramError(_sentence(err, program.returncode), abs(program.returncode))


def _wait(program: subprocess.Popen[bytes], stop: StopRequests, limit_s: float | None) -> None:
    start_s = time.monotonic()
    while program.poll() is None and not stop.signum:
        if limit_s is not None and time.monotonic() - start_s > limit_s:
            raise ProgramError(f"took longer than {limit_s:g} s and was ended; raise launch.limit", 3)
        time.sleep(POLL_S)


def _end(program: subprocess.Popen[bytes]) -> None:
    """Its whole process group: a launcher and what it started here."""
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGTERM)
    try:
        program.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def _sentence(err: IO[bytes], code: int) -> str:
    """What the program said of its failure: our own error message, else its last line."""
    err.seek(0)
    lines = [line.strip() for line in err.read().decode(errors="replace").splitlines() if line.strip()]
    ours = [line.split(_ERROR, 1)[1] for line in lines if _ERROR in line]
    return ours[0] if ours else f"{lines[-1]} (exit code {code})" if lines else f"ended with exit code {code}"
