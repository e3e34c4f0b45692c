"""A file that keeps failed writes from the HDF5 library, which crashes the process when it meets one."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from astra_mpi.files.whole import RawFile

#: what is kept of a failed write: all metadata, which the library reads again, but not the values of large datasets
_KEPT_BYTES = 1 << 24
#: of all failed writes together; beyond it the largest are dropped, for metadata comes in small pieces
_ALL_KEPT_BYTES = 1 << 26


class Shield:
    """What HDF5 writes to: a Python file object whose methods never raise.

    The first failure is remembered, and nothing more is written to disk. What the library reads afterwards is as if all
    had been written. Leaving the context raises the failure, in place of what came of it.
    """

    def __init__(self, file: RawFile) -> None:
        self._file = file
        self._failure: BaseException | None = None
        self._place = self._end = 0
        self._kept: list[tuple[int, bytes]] = []
        self._n_kept_bytes = 0

    def __enter__(self) -> Shield:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is not self._failure:
            self.check()

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self._failure is not None:
            raise self._failure

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self._place = self._end if whence == os.SEEK_END else place
        return self._place

    def tell(self) -> int:
        return self._place

    def write(self, data: Any) -> int:
        view = memoryview(data)
        try:
            if self._failure is None:
                self._file.write_at(self._place, view)
        except BaseException as exc:  # Ctrl-C too: an exception is a failed write to the library
            self._failure = exc
        if self._failure is not None and view.nbytes <= _KEPT_BYTES:
            self._keep(bytes(view))
        self._end = max(self._end, self._place + view.nbytes)
        return view.nbytes

    def _keep(self, data: bytes) -> None:
        self._kept.append((self._place, data))
        self._n_kept_bytes += len(data)
        while self._n_kept_bytes > _ALL_KEPT_BYTES:
            largest = max(self._kept, key=lambda piece: len(piece[1]))
            self._kept.remove(largest)
            self._n_kept_bytes -= len(largest[1])

    def readinto(self, data: Any) -> int:
        view = memoryview(data)
        found = b""
        try:
            found = self._file.read_at(self._place, view.nbytes)
        except BaseException as exc:
            self._failure = self._failure or exc
        view[:] = found.ljust(view.nbytes, b"\0")
        for place, kept in self._kept:
            first, last = max(place, self._place), min(place + len(kept), self._place + view.nbytes)
            if first < last:
                view[first - self._place : last - self._place] = kept[first - place : last - place]
        return view.nbytes

    def truncate(self, n_bytes: int) -> int:
        try:
            if self._failure is None:
                self._file.truncate(n_bytes)
        except BaseException as exc:
            self._failure = exc
        self._end = n_bytes
        return n_bytes

    def flush(self) -> None:
        """All is written already; the disk is waited for once, at the end."""
