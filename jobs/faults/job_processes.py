"""The processes of one MPI job on this machine, found by a mark in their environment, and their memory.

Launchers give their ranks sessions and process groups of their own, so that neither tells whose a process is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

MARK = b"ASTRA_MPI_JOB"
#: seconds after the first look that count as warm-up, and how long it must live on to be judged
WARM_UP_S, JUDGED_S = 20.0, 20.0


def marked(environment: Mapping[str, str], name: str) -> dict[str, str]:
    """An environment by which the processes of a job, and those that they start, are known."""
    return {**environment, MARK.decode(): name}


def of_job(name: str) -> list[int]:
    """Processes of a job that are not zombies."""
    return [pid for pid, _ in _with_environments(name)]


def ranks_of(name: str) -> dict[int, int]:
    """Rank -> process that runs astra_mpi."""
    found = {}
    for pid, told in _with_environments(name):
        rank = told.get(b"PMI_RANK", told.get(b"OMPI_COMM_WORLD_RANK"))
        command = _read(pid, "cmdline")
        if rank is not None and b"-m\0astra_mpi\0" in command and b"mpirun" not in command:
            found[int(rank)] = pid
    return found


def _with_environments(name: str) -> Iterator[tuple[int, dict[bytes, bytes]]]:
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            pid = int(path.name)
            words = _read(pid, "environ").split(b"\0")
            told = dict(word.split(b"=", 1) for word in words if b"=" in word)
            # a zombie has no environment any more
            if told.get(MARK) == name.encode():
                yield pid, told


def _read(pid: int, name: str) -> bytes:
    """A file of a process; empty if it is gone or another user's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


class Memory:
    """Resident memory of processes over their lives."""

    def __init__(self) -> None:
        self.seen: dict[int, list[tuple[float, float]]] = {}

    def look(self, ranks: dict[int, int]) -> None:
        for pid in ranks.values():
            kib = [float(line.split()[1]) for line in _read(pid, "status").splitlines() if line.startswith(b"VmRSS")]
            if kib:
                self.seen.setdefault(pid, []).append((time.monotonic(), kib[0] / 1024))

    def spreads(self) -> list[tuple[float, float, float]]:
        """(largest over smallest - 1, seconds judged, MiB) of every process that lived long enough."""
        found = []
        for looks in self.seen.values():
            warm = [(time_s, mib) for time_s, mib in looks if time_s - looks[0][0] >= WARM_UP_S]
            if warm and warm[-1][0] - warm[0][0] >= JUDGED_S:
                sizes = [mib for _, mib in warm]
                found.append((max(sizes) / min(sizes) - 1, warm[-1][0] - warm[0][0], max(sizes)))
        return found
