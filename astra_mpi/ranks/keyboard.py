"""Standard input of rank 0 line by line, read beside the work, with Ctrl-C as a key where a launcher would take it.

MPICH's launcher passes the first Ctrl-C on and ends the job at the second, Open MPI's at the first. Where the launcher
reads a terminal of this machine, that terminal is told to send Ctrl-C as the end of a line instead, which comes here as
every other character does. A process of its own puts the terminal back once this one has gone, however it went.
"""

from __future__ import annotations

import io
import os
import queue
import subprocess
import threading
from contextlib import suppress
from typing import Any

from astra_mpi.ranks.signals import Interrupts

KEY = b"\x03"
_LAUNCHERS = ("mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun", "prun", "prte", "srun")
_RESTORE = 'cat >/dev/null; stty "$0" <"$1"'


class Keyboard:
    """Context in which lines of `stream` can be waited for; the key is noted in `interrupts`."""

    def __init__(self, stream: Any, interrupts: Interrupts) -> None:
        """stream: as sys.stdin; None: there is nothing."""
        self._stream, self._interrupts = stream, interrupts
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Keyboard:
        if self._stream is None:
            self._lines.put(None)
            return self
        self._guard = _key_instead_of_signal()
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard.wait()

    def line(self, longest: int) -> bytes | None:
        """The next one, without its end; b"" once Ctrl-C is noted; None at the end of the input. `longest` + 1 bytes of
        one that is longer."""
        while not self._interrupts:
            with suppress(queue.Empty):
                return self._taken(longest)
        return b""

    def _taken(self, longest: int) -> bytes | None:
        line = self._lines.get(timeout=0.1)
        if line is None:
            self._lines.put(None)
        return line if line is None else line[: longest + 1]

    def _read(self) -> None:
        left = b""
        while data := self._some():
            if KEY in data:
                self._interrupts.note()
                before, _, data = data.rpartition(KEY)
                for line in (left + before.replace(KEY, b"")).split(b"\n")[:-1]:
                    self._lines.put(line)
                left = b""  # what was typed of a line is taken back
            *lines, left = (left + data).split(b"\n")
            for line in lines:
                self._lines.put(line)
        if left:
            self._lines.put(left)
        self._lines.put(None)

    def _some(self) -> bytes:
        """What has come, past Python's buffers, whose locks a thread must not hold when the interpreter ends."""
        try:
            number = self._stream.fileno()
        except io.UnsupportedOperation:
            return bytes(self._stream.buffer.read1(1 << 16))
        with suppress(OSError):
            return os.read(number, 1 << 16)
        return b""


def _key_instead_of_signal() -> subprocess.Popen[bytes] | None:
    """The process that will put the launcher's terminal back; None where there is none, or it cannot be set."""
    terminal = _launchers_terminal()
    if terminal is None:
        return None
    with suppress(OSError, subprocess.CalledProcessError), open(terminal, "rb", buffering=0) as tty:
        saved = subprocess.run(["stty", "-g"], stdin=tty, capture_output=True, check=True).stdout.decode().strip()
        command = ["sh", "-c", _RESTORE, saved, terminal]
        none = subprocess.DEVNULL
        guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=none, stderr=none, start_new_session=True)
        subprocess.run(["stty", "intr", "undef", "eol", "^C"], stdin=tty, stdout=none, stderr=none, check=True)
        return guard
    return None


def _launchers_terminal() -> str | None:
    """The terminal that a launcher among this process's ancestors has as its standard input, on Linux."""
    process = os.getppid()
    with suppress(OSError, ValueError, IndexError):
        while process > 1:
            with open(f"/proc/{process}/stat") as file:
                name, _, rest = file.read().partition("(")[2].rpartition(")")
            if name in _LAUNCHERS:
                stdin = os.readlink(f"/proc/{process}/fd/0")
                return stdin if stdin.startswith(("/dev/pts/", "/dev/tty")) else None
            process = int(rest.split()[1])
    return None
