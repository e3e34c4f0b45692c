"""One run at a time per results folder, over machines that share a file system."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from astra_mpi.errors import AstraError, InputError

BEAT_EVERY_S = 10.0
STALE_AFTER_S = 60.0
#: two runs that take over a stale lock at once: the later writer wins, and both look again after this
SETTLE_S = 0.2


class Lock:
    """Holds `path` from construction to `release`: a JSON file of host, pid and the time of the last heartbeat.

    InputError if another run holds it. A lock whose process is gone (same host), or without a heartbeat for
    STALE_AFTER_S, is taken over with a notice on stderr.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = uuid.uuid4().hex
        self._writing = threading.Lock()
        self._acquire()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Show that this run is alive. AstraError if another run took the lock over."""
        if _read(self.path).get("token") != self.token:
            raise AstraError(f"{self.path.parent}: another run took over while this one was silent; this one stops")
        self._write()

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        if _read(self.path).get("token") == self.token:
            self.path.unlink()

    def _acquire(self) -> None:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            _refuse_if_alive(self.path)
            self._write()
            time.sleep(SETTLE_S)
            _refuse_if_alive(self.path, self.token)
        self._write()

    def _write(self) -> None:
        beside = self.path.with_name(f"{self.path.name}.{self.token}")
        me = {"host": socket.gethostname(), "pid": os.getpid(), "token": self.token, "heartbeat": time.time()}
        with self._writing:
            beside.write_text(json.dumps(me))
            beside.replace(self.path)

    def _beat_on(self) -> None:
        while not self._stop.wait(BEAT_EVERY_S):
            try:
                self.beat()
            except (AstraError, OSError):  # the next finished batch reports it
                return


def _refuse_if_alive(path: Path, mine: str = "") -> None:
    holder = _read(path)
    if holder.get("token") == mine:
        return
    try:
        silent_s = time.time() - holder.get("heartbeat", path.stat().st_mtime)
    except FileNotFoundError:
        return
    who = f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"
    if _gone(holder):
        reason = "which has ended"
    elif silent_s > STALE_AFTER_S:
        reason = f"silent for {silent_s:.0f} s"
    else:
        raise InputError(
            f"{path.parent} is in use by {who} (last heard of {max(silent_s, 0):.0f} s ago); "
            "wait for it to end, or give another output.path"
        )
    print(f"astra-mpi: taking over {path.parent} from {who}, {reason}", file=sys.stderr, flush=True)


def _gone(holder: dict[str, Any]) -> bool:
    """True if the holder ran on this host and its process no longer exists."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _read(path: Path) -> dict[str, Any]:
    """What the lock says; nothing if it is just being created or is not a lock of ours."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}
