"""A C library that never comes back ends the process: one sentence, exit code 2.

It may keep the interpreter, and then no Python code runs any more, neither threads nor signal handlers. Timers of the
kernel do: two of them count the processor time of this process and call a function of the C library each. A thread puts
them off for as long as it can run. Time spent waiting for a file system does not count.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from h5py._objects import phil  # h5py's lock: held during every call of the HDF5 library

from astra_mpi.ranks import witness
from astra_mpi.ranks.launch import launched_rank, launched_size

#: processor time from the sentence to the end
AFTER_S = 0.5
_EXIT_CODE = 2
_PROCESS_CPU_TIME, _CALL_IN_THREAD = 2, 2  # CLOCK_PROCESS_CPUTIME_ID, SIGEV_THREAD
_NAME = ctypes.create_string_buffer(b"astra-mpi")
_ROOM_BYTES = 1 << 14  # of a sentence
_MINE = threading.local()  # bound: what this thread works under


class _Event(ctypes.Structure):
    """struct sigevent."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("room", ctypes.c_char * 32),
    )


class _Times(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "after_s", "after_ns"))


@cache
def _library() -> Any:
    """The C library, which says "astra-mpi:" before its warnings from now on; None where it has no such timers."""
    for name in (None, "librt.so.1"):  # where they were before glibc 2.34
        with suppress(OSError, AttributeError, ValueError):
            library = ctypes.CDLL(name)
            _ = library.timer_create, library.timer_settime, library.timer_delete, library.warnx, library._exit
            shown = ctypes.c_void_p.in_dll(library, "program_invocation_short_name")
            shown.value = ctypes.addressof(_NAME)
            return library
    return None


class _Timer:
    """Calls function(argument), of the C library, in a thread of its own."""

    def __init__(self, library: Any, function: Any, argument: int) -> None:
        self._library, self._id = library, ctypes.c_void_p()
        address = ctypes.cast(function, ctypes.c_void_p).value
        event = _Event(value=argument, notify=_CALL_IN_THREAD, function=address)
        self._made = library.timer_create(_PROCESS_CPU_TIME, ctypes.byref(event), ctypes.byref(self._id)) == 0

    def put_off(self, for_s: float) -> None:
        if self._made:
            times = _Times(after_s=int(for_s), after_ns=int(for_s % 1 * 1e9))
            self._library.timer_settime(self._id, 0, ctypes.byref(times), None)

    def delete(self) -> None:
        if self._made:
            self._library.timer_delete(self._id)


class _Bound:
    """Timers at work, and the thread that puts them off."""

    def __init__(self, library: Any, what: str) -> None:
        self._text = ctypes.create_string_buffer(_ROOM_BYTES)
        limit_s = witness.READING_S
        self._timers = [(_Timer(library, library.warnx, ctypes.addressof(self._text)), limit_s)]
        self._timers.append((_Timer(library, library._exit, _EXIT_CODE), limit_s + AFTER_S))
        self._limit_s, self._stop = limit_s, threading.Event()
        self._thread = threading.Thread(target=self._keep_putting_off, daemon=True)
        self.name(what)
        self._thread.start()

    def name(self, what: str) -> bytes:
        """From now on `what` is worked on, and the time begins anew. -> the sentence before."""
        rank = f"rank {launched_rank()}: " if launched_size() > 1 else ""
        busy = f"keeps the HDF5 library busy for over {self._limit_s:g} s: it is damaged; make it anew"
        return self.say(os.fsencode(f"error: {rank}{what} {busy}".replace("%", "%%"))[: _ROOM_BYTES - 1])

    def say(self, sentence: bytes) -> bytes:
        before: bytes = self._text.value
        self._text.value = sentence
        self._put_off()
        return before

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        for timer, _ in self._timers:
            timer.delete()
        witness.WITNESS.bounded(False)

    def _put_off(self) -> None:
        witness.WITNESS.bounded(True)
        for timer, limit_s in self._timers:
            timer.put_off(limit_s)

    def _keep_putting_off(self) -> None:
        while not self._stop.wait(self._limit_s / 12):
            with phil:  # some calls let other threads run, but not this one
                self._put_off()


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """A context in which no call of the HDF5 library may take longer than witness.READING_S. what: what it works on.

    Inside another one, only `what` is new: put one around the reading of many files, for a thread costs milliseconds.
    """
    library = _library()
    if library is None:
        yield
        return
    bound: _Bound | None = getattr(_MINE, "bound", None)
    if bound is not None:
        before = bound.name(what)
        try:
            yield
        finally:
            bound.say(before)
        return
    bound = _MINE.bound = _Bound(library, what)
    try:
        yield
    finally:
        _MINE.bound = None
        bound.end()
