"""A rank that dies is named, also where its launcher only ends the others (docs/explanation/faults.md).

Rank 0 starts one small process, outside of the launcher's process groups, and every rank connects to it. No thread and
no MPI call is needed afterwards: the kernel closes the connection of a process that ends, however it ends.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from astra_mpi.ranks.launch import launched_rank, launched_size

if TYPE_CHECKING:
    from mpi4py import MPI

_PROGRAM = Path(__file__).with_name("witness_process.py")
#: how long the witness's start may take, a rank's attempt at one address, the answer there, the witness's end
START_S, CONNECT_S, HELLO_S, END_S = 10.0, 1.0, 5.0, 1.0
#: processor time that a call of the HDF5 library may take (stuck.py)
READING_S = 60.0


class Witness:
    """This process's end: none where there is one rank, or where the witness cannot be started or reached."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None

    def start(self, command: str) -> None:
        """On rank 0 of several, as the launcher counts them; before MPI starts, so that nothing of it is inherited."""
        if launched_rank() or launched_size() == 1:
            return
        then = "all ranks end"
        if command == "run":
            then = "finished batches are kept, and the same command goes on from there"
        words = [sys.executable, "-I", "-S", str(_PROGRAM), str(launched_size()), str(READING_S), then]
        pipe = subprocess.PIPE
        with suppress(OSError):
            self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, start_new_session=True)

    def join(self, comm: MPI.Comm) -> bool:
        """Collective: connect every rank, or none, since who dies first is only known of all. True if connected."""
        import numpy as np
        from mpi4py import MPI

        from astra_mpi.ranks.broadcast import broadcast_text

        where = broadcast_text(comm, " ".join([self._announced(), *_addresses()]) if comm.Get_rank() == 0 else "")
        port, token, *addresses = where.split() if where[:1].isdecimal() else ("", "")
        hello = f"{token} {comm.Get_rank()} {os.getpid()} {socket.gethostname()}\n".encode()
        self._line = _connect(addresses, int(port), hello) if port else None
        connected = np.array([self._line is not None], np.int32)
        comm.Allreduce(MPI.IN_PLACE, connected, op=MPI.MIN)
        if not connected[0]:
            self.leave()
        return bool(connected[0])

    def leave(self) -> None:
        """This rank ends in order."""
        self._say(b"e")
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
            self._process = None

    def bounded(self, begins: bool) -> None:
        """This rank is, or is no more, under a limit of its own, at which it ends with a message (stuck.py)."""
        line = self._line
        if line is not None:
            with suppress(OSError):
                line.send(b"r" if begins else b"d")

    def told(self) -> None:
        """This rank has said why all end, and is about to end them; returns once the witness will say nothing more."""
        line = self._line
        self._say(b"t")
        with suppress(OSError):
            if line is not None:
                line.settimeout(END_S)
                line.recv(1)

    def _say(self, what: bytes) -> None:
        if self._line is not None:
            with suppress(OSError):
                self._line.send(what)
            self._line = None

    def _announced(self) -> str:
        """Port and token, from the process that rank 0 has started; "" if there is none."""
        if self._process is None or self._process.stdout is None:
            return ""
        ready, _, _ = select.select([self._process.stdout], [], [], START_S)
        return self._process.stdout.readline().decode().strip() if ready else ""


def _connect(addresses: list[str], port: int, hello: bytes) -> socket.socket | None:
    for address in addresses:
        with suppress(OSError):
            line = socket.create_connection((address, port), timeout=CONNECT_S)
            line.sendall(hello)
            line.settimeout(HELLO_S)
            if line.recv(1) == b"\n":
                return line
            line.close()
    return None


def _addresses() -> list[str]:
    """Where this machine may be reached, from itself and from others."""
    found = ["127.0.0.1"]
    with suppress(OSError):
        found += [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    return list(dict.fromkeys([*found, *_interfaces()]))


def _interfaces() -> Iterator[str]:
    """IPv4 addresses of the network interfaces, where the kernel tells them (Linux)."""
    if sys.platform != "linux":
        return
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                asked = name.encode().ljust(256, b"\0")
                answer = fcntl.ioctl(any_socket.fileno(), 0x8915, asked)  # SIOCGIFADDR: struct ifreq
                yield socket.inet_ntoa(answer[20:24])


#: a process has one
WITNESS = Witness()
