"""Every kind of file written while its disk fails: nothing is lost, nothing is half there, and a second try succeeds.

Three faults, each in a process of its own: files may have no more than N bytes (RLIMIT_FSIZE), for every N in steps;
the k-th call of the operating system fails with an I/O error, a quota or a full disk, for every k; and, as root, a file
system in memory of N pages, for every N. After each failure: one sentence with the file's name, no temporary file, what
was there before as it was, everything under a final name whole. Then the same once more without the fault: the same
bits as undisturbed.

    python jobs/faults/fault_writes.py                    # --step 256 for more, --commands for whole commands too
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from fault_writers import Writer, held, make_inputs, writers

from astra_mpi.errors import AstraError

#: calls by which files are written
CALLS = ("open", "pwrite", "ftruncate", "fsync", "close", "replace")
ERRORS = (errno.EIO, errno.EDQUOT, errno.ENOSPC)
PAGE = 4096
#: a run with fewer has not tried enough
LEAST_FAILED = 500
_NEW_NAMESPACE, _PRIVATE, _REMOUNT = 0x00020000, 1 << 18 | 1 << 14, 32  # CLONE_NEWNS; MS_PRIVATE, MS_REC; MS_REMOUNT

Row = dict[str, Any]  # tries, how many of them failed, and sentences on what went wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", type=int, default=1024, metavar="BYTES", help="between limits (default %(default)s)")
    parser.add_argument("--calls", type=int, default=24, metavar="N", help="of a kind that fail (default %(default)s)")
    parser.add_argument("--commands", action="store_true", help="whole commands too, on 1 and 2 ranks: 10 minutes")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs"
        inputs.mkdir()
        make_inputs(inputs)
        print(f"{'writer':<24}{'fault':<18}{'tried':>7}{'failed':>8}{'wrong':>7}")
        for writer in writers(inputs):
            for name, trial in trials().items():
                rows.append(tried := in_child(lambda w=writer, t=trial: t(w, Path(folder), args.step, args.calls)))
                _say(writer.name, name, tried)
        if args.commands:
            import fault_commands

            for name, tried in fault_commands.run_all(Path(folder) / "commands"):
                rows.append(tried)
                _say(*name, tried)
    failed, wrong = sum(row["failed"] for row in rows), sum(len(row["wrong"]) for row in rows)
    print(f"{failed} writes failed in {sum(row['tried'] for row in rows)} tries; {wrong} lost or broke something")
    fine = args.step <= parser.get_default("step") and args.calls >= parser.get_default("calls")
    if few := failed < (LEAST_FAILED if fine else 1):
        print(f"too few writes failed: at least {LEAST_FAILED} of a whole run")
    return 1 if wrong or few else 0


def _say(writer: str, fault: str, row: Row) -> None:
    print(f"{writer:<24}{fault:<18}{row['tried']:>7}{row['failed']:>8}{len(row['wrong']):>7}", flush=True)
    for sentence in row["wrong"][:5]:
        print(f"    {sentence}", flush=True)


def trials() -> dict[str, Callable[[Writer, Path, int, int], Row]]:
    return {"largest file": by_size, "call": by_call} | ({"tmpfs": by_room} if may_mount() else {})


def in_child(work: Callable[[], Row]) -> Row:
    """`work()` in a fork, whose death counts as one more loss."""
    inlet, outlet = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(inlet)
        code = 1
        try:
            found = json.dumps(work())
            with os.fdopen(outlet, "w") as pipe:
                pipe.write(found)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(outlet)
    with os.fdopen(inlet) as pipe:
        told = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    row: Row = json.loads(told) if told else {"tried": 1, "failed": 0, "wrong": []}
    if code:
        row["wrong"].append(f"the process ended with {code}")
    return row


def by_size(writer: Writer, folder: Path, step: int, most: int) -> Row:
    """Limits from 0 to beyond the largest file, at least 16."""
    trial = Trial(writer, folder)
    largest = max(path.stat().st_size for path in trial.example.rglob("*") if path.is_file())
    step = max(1, min(step, largest // 16))
    for i, n_bytes in enumerate(range(0, largest + 2 * step, step)):
        trial.attempt(largest_file(n_bytes), old=i % 4 == 3)
    return trial.row


def by_call(writer: Writer, folder: Path, step: int, most: int) -> Row:
    """The first call fails, the second, and so on; of more than `most` of a kind every n-th and the last."""
    trial = Trial(writer, folder)
    for name in CALLS:
        counted = FailingCall(name, None)
        with scratch(folder) as there, counted:
            writer.write(there)
        n_calls = counted.seen
        for i, k in enumerate({*range(0, n_calls, max(1, n_calls // most)), n_calls - 1} if n_calls else ()):
            trial.attempt(FailingCall(name, k, ERRORS[i % len(ERRORS)]), old=i % 4 == 3)
    return trial.row


def by_room(writer: Writer, folder: Path, step: int, most: int) -> Row:
    """File systems of 1 page, 2 pages and so on until all fits."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.unshare(_NEW_NAMESPACE)
    _mount(libc, b"none", b"/", None, _PRIVATE, None)
    trial = Trial(writer, folder)
    trial.folder = disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    for n_pages in range(1, 200):
        _mount(libc, b"none", bytes(disk), b"tmpfs", 0, b"size=%d" % (n_pages * PAGE))
        failed = trial.attempt(small_disk(libc, disk), old=False)
        libc.umount(bytes(disk))
        if not failed:
            break
    return trial.row


class Trial:
    """A writer under faults, one after another, and what came of them."""

    def __init__(self, writer: Writer, folder: Path) -> None:
        self.writer, self.folder = writer, folder
        self.row: Row = {"tried": 0, "failed": 0, "wrong": []}
        self.example = folder / "example"
        shutil.rmtree(self.example, ignore_errors=True)
        self.example.mkdir()
        writer.write(self.example)
        self.whole = held(self.example)

    def attempt(self, fault: AbstractContextManager[Any], old: bool) -> bool:
        """Write under the fault; old: where older files are in the way. -> whether it failed."""
        self.row["tried"] += 1
        failed = False
        with scratch(self.folder) as there:
            try:
                failed = self._attempt(there, fault, old and self.writer.replaces)
            except (AstraError, AssertionError, ValueError, OSError) as exc:
                self.row["wrong"].append(f"{type(exc).__name__}: {exc}")
        self.row["failed"] += failed
        return failed

    def _attempt(self, there: Path, fault: AbstractContextManager[Any], old: bool) -> bool:
        """AssertionError, ValueError on what must not be."""
        if old:
            self.writer.write(there)
        said = None
        with fault:
            try:
                self.writer.write(there)
            except AstraError as exc:
                said = str(exc)
        after = held(there)
        if said is None:
            assert after == self.whole, "no error, and other contents"
            return False
        assert str(there) in said and "cannot be written (" in said and "\n" not in said, f"it says: {said}"
        wrong = {name for name in after.keys() & self.whole.keys() if after[name] != self.whole[name]} - {"run.jsonl"}
        assert not wrong, f"{wrong} have other contents"
        lines = after.get("run.jsonl", b"")
        assert isinstance(lines, bytes) and (not lines or self.whole["run.jsonl"].startswith(lines)), "half a line"
        assert not old or after.keys() >= self.whole.keys(), "what was there is gone"
        self.writer.write(there)
        assert held(there) == self.whole, "the second try gives other contents"
        return True


def may_mount() -> bool:
    """Whether this process may have file systems of its own."""
    return _succeeds(lambda: ctypes.CDLL(None).unshare(_NEW_NAMESPACE))


def _succeeds(call: Callable[[], int]) -> bool:
    pid = os.fork()
    if pid == 0:
        os._exit(1 if call() else 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _mount(libc: Any, *words: Any) -> None:
    if libc.mount(*words):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    there = folder / "scratch"
    there.mkdir()
    try:
        yield there
    finally:
        shutil.rmtree(there)


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FailingCall:
    """The k-th call of os.<name> that has to do with writing fails; none for k = None, and they are counted."""

    def __init__(self, name: str, k: int | None, error: int = errno.EIO) -> None:
        self.name, self.k, self.error, self.seen = name, k, error, 0
        self.real = getattr(os, name)

    def __enter__(self) -> None:
        setattr(os, self.name, self._call)

    def __exit__(self, *_: object) -> None:
        setattr(os, self.name, self.real)

    def _call(self, *args: Any, **options: Any) -> Any:
        if self.name == "open" and not args[1] & os.O_CREAT:
            return self.real(*args, **options)
        self.seen += 1
        if self.seen - 1 != self.k:
            return self.real(*args, **options)
        if self.name == "close":
            self.real(*args)  # as Linux does: the file is closed, whatever is returned
        raise OSError(self.error, os.strerror(self.error))


@contextmanager
def small_disk(libc: Any, disk: Path) -> Iterator[None]:
    """The disk is small already; room is made in the end."""
    try:
        yield
    finally:
        _mount(libc, b"none", bytes(disk), b"tmpfs", _REMOUNT, b"size=64m")


if __name__ == "__main__":
    begin_s = time.monotonic()
    code = main()
    print(f"{time.monotonic() - begin_s:.0f} s")
    sys.exit(code)
