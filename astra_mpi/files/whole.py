"""Every file that is written is written here: whole under its own name or not at all, and a failure is one sentence."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from astra_mpi.errors import AstraError, InputError

#: what to do about an error of the operating system
_CURES = {
    errno.ENOSPC: "make room there or choose another place, and run the same command again",
    errno.EDQUOT: "your quota is used up: remove files or ask for more, and run the same command again",
    errno.EFBIG: "files may not be so large there: raise `ulimit -f` or choose another place",
    errno.EIO: "the disk or the network behind it fails: see the system's log, and choose another place",
    errno.EROFS: "mounted read-only: choose another place",
    errno.ENOENT: "create its folder or choose another place",
    errno.ENOTDIR: "a part of its path is a file: choose another place",
    errno.EEXIST: "it is a file, and a folder is needed: choose another place",
    errno.EACCES: "check its permissions or choose another place",
}
#: the place was given wrongly, if a file cannot even be begun there
_WRONG_PLACE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS),
)


def failed(path: str | Path, exc: OSError, *, begun: bool = True) -> AstraError:
    """The one sentence about a write that failed: the file, the reason, the cure.

    begun: False if nothing was written yet; then it is an InputError where the place is wrong.
    """
    reason = exc.strerror or " ".join(str(exc).split()) or type(exc).__name__
    cure = _CURES.get(exc.errno or 0, "check space and permissions")
    kind = InputError if not begun and exc.errno in _WRONG_PLACE else AstraError
    return kind(f"{path} cannot be written ({reason}); {cure}")


class RawFile:
    """A file open for reading and writing, without buffers; AstraError names `path`, the name that it will have."""

    def __init__(self, path: str | Path, handle: int) -> None:
        self.path, self.handle = path, handle
        self._place = 0

    def write(self, data: bytes | memoryview) -> int:
        """All of it, after what was written before."""
        self.write_at(self._place, data)
        n_bytes = memoryview(data).nbytes
        self._place += n_bytes
        return n_bytes

    def write_at(self, place: int, data: bytes | memoryview) -> None:
        """All of it, from byte `place` on."""
        left = memoryview(data).cast("B")
        with self.telling():
            while left:
                n_written = os.pwrite(self.handle, left, place)
                if not n_written:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                left, place = left[n_written:], place + n_written

    def read_at(self, place: int, n_bytes: int) -> bytes:
        """At most so many."""
        with self.telling():
            return os.pread(self.handle, n_bytes, place)

    def truncate(self, n_bytes: int) -> None:
        with self.telling():
            os.ftruncate(self.handle, n_bytes)

    def sync(self) -> None:
        """Wait until the disk has it: some file systems find only now that it is full."""
        with self.telling():
            os.fsync(self.handle)

    def close(self) -> None:
        handle, self.handle = self.handle, -1
        if handle >= 0:
            with self.telling():
                os.close(handle)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """An OSError of the body, as one sentence about this file."""
        try:
            yield
        except OSError as exc:
            raise failed(self.path, exc) from exc


@contextmanager
def writing(path: str | Path, mark: str | None = None) -> Iterator[RawFile]:
    """A file under a temporary name beside `path`; on disk and renamed when the body succeeds.

    After a failure an older file at `path` is untouched and nothing is left of the new one; only if the disk failed at
    the folder's entry, behind the renaming, is the new one there, whole. mark: what tells the temporary names of
    several writers of one file apart; by default the process number. What is no ordinary file, such as a pipe, a
    terminal or /dev/stdout, is written to directly. AstraError; InputError if no file can be begun at `path`.
    """
    if not is_ordinary(path):
        with _direct(path) as file:
            yield file
        return
    target = followed(path)
    with _beside(path, target, mark) as (file, temporary):
        yield file
        file.sync()
        file.close()
        with file.telling():
            os.replace(temporary, target)
            _sync_folder(target.parent)


def take_place(hidden: Path, path: str | Path) -> None:
    """Give a file that is on disk, beside `followed(path)`, the name `path`. AstraError as `writing`."""
    target = followed(path)
    try:
        with suppress(OSError):
            hidden.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(hidden, target)
        _sync_folder(target.parent)
    except OSError as exc:
        raise failed(path, exc) from exc


def followed(path: str | Path) -> Path:
    """The place behind links: they stay."""
    return Path(os.path.realpath(path))


def is_ordinary(path: str | Path) -> bool:
    """Whether a file may take its place: there is none, or one that is neither a pipe, a device nor an open one."""
    return _descriptor(path) is None and (os.path.isfile(path) or not os.path.exists(path))


def check_place(path: str | Path) -> None:
    """AstraError if not even a few bytes can be written beside `path`; InputError where the place is wrong."""
    with _beside(path, followed(path), None) as (file, _):
        file.write(b"room?")
        file.sync()


@contextmanager
def _beside(path: str | Path, target: Path, mark: str | None) -> Iterator[tuple[RawFile, Path]]:
    """A new file under a temporary name, which is gone in the end unless it was renamed."""
    mark = str(os.getpid()) if mark is None else mark
    temporary = target.with_name(".".join(["", target.name, *([mark] if mark else []), "tmp"]))
    file = None
    try:
        file = RawFile(path, _open(path, temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        _keep_mode(target, file.handle)
        yield file, temporary
    finally:
        try:
            if file is not None:
                file.close()
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def _direct(path: str | Path) -> Iterator[RawFile]:
    file = _Stream(path, _open_descriptor(path))
    try:
        yield file
    finally:
        file.close()


def _open_descriptor(path: str | Path) -> int:
    """For writing; a descriptor of this process is shared, for what is printed there before and behind stays."""
    folder, number = _descriptor(path) or ("", "")
    if number.isdigit() and folder == os.path.realpath("/proc/self/fd"):
        print(end="", flush=True)
        try:
            return os.dup(int(number))
        except OSError as exc:
            raise failed(path, exc, begun=False) from exc
    return _open(path, Path(path), os.O_WRONLY | os.O_APPEND)


def _descriptor(path: str | Path) -> tuple[str, str] | None:
    """The folder and number of the open file that `path` names, as /dev/stdout and /dev/fd/3 do."""
    place = os.path.abspath(path)
    for _ in range(40):  # as many links as Linux follows
        folder, name = os.path.realpath(os.path.dirname(place)), os.path.basename(place)
        if folder.startswith("/proc/") and folder.endswith("/fd"):
            return folder, name
        try:
            place = os.path.join(folder, os.readlink(place))
        except OSError:
            return None
    return None


class _Stream(RawFile):
    """What has no places to write to, and no disk below."""

    def write_at(self, place: int, data: bytes | memoryview) -> None:
        left = memoryview(data).cast("B")
        with self.telling():
            while left:
                left = left[os.write(self.handle, left) :]

    def sync(self) -> None:
        return


def _open(path: str | Path, place: Path, flags: int) -> int:
    try:
        return os.open(place, flags | os.O_CLOEXEC, 0o666)
    except OSError as exc:
        raise failed(path, exc, begun=False) from exc


def _keep_mode(target: Path, handle: int) -> None:
    """The permissions of the file that is replaced."""
    with suppress(OSError):
        os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:  # files may be made there, but not listed
        return
    try:
        os.fsync(handle)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that know no such thing
            raise
    finally:
        os.close(handle)


def write_bytes(path: str | Path, data: bytes, mark: str | None = None) -> None:
    """As `writing`."""
    with writing(path, mark) as file:
        file.write(data)


def write_text(path: str | Path, text: str, mark: str | None = None) -> None:
    """As `writing`, in UTF-8; what is no character, such as a byte of a name that is not UTF-8, as an escape."""
    write_bytes(path, text.encode(errors="backslashreplace"), mark)


def append(path: str | Path, text: str) -> None:
    """Add whole lines to a file: all of `text`, or nothing of it. AstraError, InputError as `writing`."""
    file = RawFile(path, _open(path, Path(path), os.O_RDWR | os.O_CREAT))
    try:
        end = os.fstat(file.handle).st_size
        try:
            file.write_at(end, text.encode(errors="backslashreplace"))
        except AstraError:
            with suppress(OSError):
                os.ftruncate(file.handle, end)
            raise
    finally:
        file.close()


def make_folder(path: str | Path) -> None:
    """With those above it. AstraError, InputError as `writing`."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise failed(path, exc, begun=False) from exc
