"""One run at a time per results folder, over machines that share a file system."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from astra_mpi.errors import AstraError, InputError
from astra_mpi.files import whole

BEAT_EVERY_S = 10.0
#: a holder on another machine that has not beaten for so long is dead
STALE_AFTER_S = 60.0
#: between two looks at the lock of another machine
LOOK_EVERY_S = 1.0
#: two runs that take over a stale lock at once: the later writer wins, and both look again after this
SETTLE_S = 0.2


class Lock:
    """Holds `path` from construction to `release`: a JSON file that says who holds it, written anew at every beat.

    InputError if another run holds it, AstraError if it cannot be written. A holder on this machine is asked for by its
    process number and start; one on another machine is waited for until it beats, or until it has been silent for
    STALE_AFTER_S. The lock of a dead one is taken over with a notice on stderr.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = uuid.uuid4().hex
        self._name = path.with_name(f"{path.name}.{self.token}")
        self._writing = threading.Lock()
        self._acquire()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Show that this run is alive, on a full disk too. AstraError if another run took the lock over."""
        if not self.path.exists():
            raise AstraError(f"{self.path} was removed while this run was at work, and with it what it kept; it stops")
        if _read(self.path).get("token") != self.token:
            raise AstraError(f"{self.path.parent}: another run took over while this one was silent; this one stops")
        try:
            self._write()
        except OSError:
            with suppress(OSError):  # a time takes no room
                os.utime(self.path)

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        if _read(self.path).get("token") == self.token:
            with suppress(OSError):  # that of an ended process is taken over
                self.path.unlink()

    def _acquire(self) -> None:
        try:
            if self._create():
                return
            _wait_for_silence(self.path)
            self._write()
        except OSError as exc:
            raise whole.failed(self.path, exc) from exc
        finally:
            with suppress(OSError):
                self._name.unlink(missing_ok=True)
        time.sleep(SETTLE_S)
        if _read(self.path).get("token") != self.token:
            raise InputError(_in_use(self.path, _read(self.path)))

    def _create(self) -> bool:
        """True if there was no lock; whole at once, so that nobody meets one that says nothing."""
        beside = self._beside()
        try:
            os.link(beside, self.path)
            return True
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                beside.replace(self.path)
                return True
            return False

    def _beside(self) -> Path:
        """What the lock is to say, in a file of this run's."""
        me = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}
        self._name.write_text(json.dumps({**me, "token": self.token, "heartbeat": time.time()}))
        return self._name

    def _write(self) -> None:
        with self._writing:
            try:
                self._beside().replace(self.path)
            finally:
                self._name.unlink(missing_ok=True)

    def _beat_on(self) -> None:
        while not self._stop.wait(BEAT_EVERY_S):
            try:
                self.beat()
            except AstraError:  # the next finished batch reports it
                return


def look(path: Path) -> dict[str, Any] | None:
    """Who holds the lock, as JSON types, for a process that does not want it; None if nobody does."""
    holder = _read(path)
    try:
        silent_s = _silent_s(path)
    except OSError:  # the folder of another user
        silent_s = time.time() - path.stat().st_mtime if path.exists() else 0.0
    if not path.exists():
        return None
    here = _here(holder)
    alive = silent_s <= STALE_AFTER_S if here is None else here
    return {
        "host": holder.get("host"),
        "pid": holder.get("pid"),
        "silent_s": round(max(silent_s, 0), 1),
        "alive": alive,
    }


def _wait_for_silence(path: Path) -> None:
    """Return once the lock may be taken over, with a notice; InputError while its holder is alive."""
    holder, beaten, said = _read(path), _beaten_s(path), False
    while path.exists():
        now = _read(path)
        if (now and (now != holder or _beaten_s(path) != beaten)) or _here(now) is True:
            raise InputError(_in_use(path, now))
        silent_s = _silent_s(path)
        if _here(now) is False or silent_s > STALE_AFTER_S:
            reason = "which has ended" if _here(now) is False else f"silent for {silent_s:.0f} s"
            _tell(f"taking over {path.parent} from {_name(now)}, {reason}")
            return
        if not said:
            left_s = STALE_AFTER_S - silent_s
            _tell(f"{path.parent} is locked by {_name(now)}; waiting up to {left_s:.0f} s for a sign of life")
            said = True
        time.sleep(LOOK_EVERY_S)


def _in_use(path: Path, holder: dict[str, Any]) -> str:
    return f"{path.parent} is in use by {_name(holder)}; wait for it to end, or give another output.path"


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"


def _tell(text: str) -> None:
    print(f"astra-mpi: {text}", file=sys.stderr, flush=True)


def _beaten_s(path: Path) -> float:
    """When the holder last gave a sign of life, by the clock of the file system; 0 if there is no lock."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _silent_s(path: Path) -> float:
    """Since the last beat, by the clock of the file system: those of two machines may differ."""
    now = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        now.touch()
        return now.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:  # released meanwhile
        return 0.0
    finally:
        now.unlink(missing_ok=True)


def _here(holder: dict[str, Any]) -> bool | None:
    """Whether the holder is alive, if it ran on this machine; None if that cannot be known."""
    pid = holder.get("pid")
    if not _machine() or holder.get("machine") != _machine() or not isinstance(pid, int):
        return None
    return _started(pid) == holder.get("started")


def _machine() -> str:
    """What process numbers belong to: this boot of this kernel, and its namespace of them; "" where that is unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process of this machine began, in ticks of its kernel; None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _read(path: Path) -> dict[str, Any]:
    """What the lock says; nothing if it is not there or is not a lock of ours."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}
