"""Large pages of memory that processes of one machine have in common: what one has put there, others find by its bytes.

The system gives large pages of shared memory only to who asks for them after the fact (MADV_COLLAPSE, Linux 6.1).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from astra_mpi.kernels.aligned import LINE, PAGE

#: of Linux, which Python has no names for
_PROT_NONE, _MAP_FIXED, _MADV_COLLAPSE = 0, 0x10, 25
#: the first page says what there is: a token, bytes taken, arrays; then of each its bytes, their sum and where they lie
_TOKEN, _TAKEN, _COUNT, _FIRST, _FIELDS = 0, 1, 2, 8, 3
_MOST = (PAGE // 8 - _FIRST) // _FIELDS


class SharedPages:
    """Arrays that are the same in several processes, once in memory. Nobody writes to them.

    Their memory goes with the last process that has an array of them, and not sooner. For one thread of a process.
    """

    def __init__(self, file: int, n_bytes: int) -> None:
        """file: a descriptor of a memory file of n_bytes, a multiple of PAGE, which is closed in the end. OSError where
        it cannot be mapped; then it stays open."""
        self._memory = np.asarray(_Mapping(file, n_bytes))
        self._header = self._memory[:PAGE].view(np.int64)
        self._file = file
        weakref.finalize(self, os.close, file).atexit = False

    @classmethod
    def create(cls, n_bytes: int) -> SharedPages | None:
        """New ones, with room for so many bytes; None where this system gives no large pages."""
        n_bytes = PAGE + -(-n_bytes // PAGE) * PAGE
        try:
            file = os.memfd_create("astra-mpi weights", os.MFD_CLOEXEC)
        except (AttributeError, OSError):
            return None
        try:
            os.ftruncate(file, n_bytes)
            os.posix_fallocate(file, 0, PAGE)
            made = cls(file, n_bytes)
        except OSError:
            os.close(file)
            return None
        if not made._collapse(0, PAGE):
            return None
        made._header[_TOKEN] = int.from_bytes(os.urandom(7), "little")
        made._header[_TAKEN] = PAGE
        return made

    @property
    def place(self) -> tuple[int, int, int]:
        """What another process of this machine finds them by."""
        return os.getpid(), self._file, int(self._header[_TOKEN])

    @classmethod
    def join(cls, process: int, file: int, token: int) -> SharedPages | None:
        """Those of another process; None where it does not let this one, or numbers of processes are not the same."""
        careful = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # it may be anything
        try:
            own = os.open(f"/proc/{process}/fd/{file}", os.O_RDWR | careful)
        except OSError:
            return None
        try:
            n_bytes = os.fstat(own).st_size
            if n_bytes < 2 * PAGE or n_bytes % PAGE:
                raise OSError(errno.EINVAL, "another file")
            made = cls(own, n_bytes)
        except OSError:
            os.close(own)
            return None
        return made if made._header[_TOKEN] == token else None

    def keep(self, array: np.ndarray) -> np.ndarray | None:
        """The same numbers in these pages, put there if they are not; None where there is no room."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        total, seen = _sum(data), 0
        while True:
            with self._locked():
                entries = self._entries
                if seen == len(entries):
                    at = self._put(data, total)
                    break
            at = self._find(data, total, entries[seen:])  # others need not wait while bytes are compared
            if at is not None:
                break
            seen = len(entries)
        return None if at is None else self._at(at, len(data)).view(array.dtype).reshape(array.shape)

    @property
    def _entries(self) -> np.ndarray:
        """(n, 3): bytes, their sum, and where they lie."""
        n = int(self._header[_COUNT])
        return self._header[_FIRST : _FIRST + _FIELDS * n].reshape(n, _FIELDS)

    def _at(self, at: int, n_bytes: int) -> np.ndarray:
        return self._memory[at : at + n_bytes]

    def _find(self, data: np.ndarray, total: int, entries: np.ndarray) -> int | None:
        alike = (entries[:, 0] == len(data)) & (entries[:, 1] == total)
        found = (int(at) for at in entries[alike, 2] if _same(self._at(int(at), len(data)), data))
        return next(found, None)

    def _put(self, data: np.ndarray, total: int) -> int | None:
        n, at = int(self._header[_COUNT]), int(self._header[_TAKEN])
        end = at + -(-len(data) // LINE) * LINE
        if n == _MOST or end > len(self._memory) or not self._grow(-(-at // PAGE) * PAGE, -(-end // PAGE) * PAGE):
            return None
        self._at(at, len(data))[:] = data
        first = _FIRST + _FIELDS * n
        self._header[first : first + _FIELDS] = len(data), total, at
        self._header[_TAKEN], self._header[_COUNT] = end, n + 1
        return at

    def _grow(self, first: int, end: int) -> bool:
        """Take memory for bytes first .. end; False where there is none. Where large pages have run out, small ones are
        better than a copy in each process."""
        if first == end:
            return True
        try:
            os.posix_fallocate(self._file, first, end - first)
        except OSError:
            return False
        self._collapse(first, end)
        return True

    def _collapse(self, first: int, end: int) -> bool:
        """Make large pages of small ones, if the system can."""
        done: int = _libc.madvise(self._memory.ctypes.data + first, end - first, _MADV_COLLAPSE)
        return done == 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


class _Mapping:
    """A file's bytes in memory, from a multiple of PAGE on; arrays made of it keep it."""

    def __init__(self, file: int, n_bytes: int) -> None:
        room = n_bytes + PAGE
        first = _libc.mmap(None, room, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if first == _FAILED:
            raise OSError(ctypes.get_errno(), "memory cannot be mapped")
        weakref.finalize(self, _libc.munmap, first, room).atexit = False  # arrays may be read until the very end
        at = -(-first // PAGE) * PAGE
        if _libc.mmap(at, n_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, file, 0) != at:
            raise OSError(ctypes.get_errno(), "memory cannot be mapped")
        self.__array_interface__ = {"shape": (n_bytes,), "typestr": "|u1", "data": (at, False), "version": 3}


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether bytes are equal, compared in pieces: the comparison takes as much memory."""
    return all(np.array_equal(a[i : i + PAGE], b[i : i + PAGE]) for i in range(0, len(a), PAGE))


def _sum(data: np.ndarray) -> int:
    """Of bytes, eight at a time, without the upper bits."""
    whole = len(data) // 8 * 8
    rest = int.from_bytes(data[whole:].tobytes(), "little")
    return (int(np.add.reduce(data[:whole].view(np.int64))) + rest) & ((1 << 62) - 1)


_libc = ctypes.CDLL(None, use_errno=True)
_FAILED = ctypes.c_void_p(-1).value
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
