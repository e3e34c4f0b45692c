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

from astra_mpi import witness
from astra_mpi.launch import launched_rank, launched_size

#: processor time from the sentence to the end
AFTER_S = 0.5
_EXIT_CODE = 2
_PROCESS_CPU_TIME, _CALL_IN_THREAD = 2, 2  # CLOCK_PROCESS_CPUTIME_ID, SIGEV_THREAD
_NAME = ctypes.create_string_buffer(b"astra-mpi")


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


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """A context in which no call of the HDF5 library may take longer than witness.READING_S. what: what it works on."""
    library = _library()
    if library is None:
        yield
        return
    limit_s = witness.READING_S
    rank = f"rank {launched_rank()}: " if launched_size() > 1 else ""
    sentence = f"error: {rank}{what} keeps the HDF5 library busy for over {limit_s:g} s: it is damaged; make it anew"
    text = ctypes.create_string_buffer(os.fsencode(sentence.replace("%", "%%")))
    timers = [(_Timer(library, library.warnx, ctypes.addressof(text)), limit_s)]
    timers.append((_Timer(library, library._exit, _EXIT_CODE), limit_s + AFTER_S))
    stop = threading.Event()
    thread = threading.Thread(target=_put_off, args=(timers, stop), daemon=True)
    _begin(timers)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for timer, _ in timers:
            timer.delete()
        witness.WITNESS.bounded(False)


def _begin(timers: list[tuple[_Timer, float]]) -> None:
    witness.WITNESS.bounded(True)
    for timer, limit_s in timers:
        timer.put_off(limit_s)


def _put_off(timers: list[tuple[_Timer, float]], stop: threading.Event) -> None:
    while not stop.wait(timers[0][1] / 12):
        with phil:  # some calls let other threads run, but not this one
            _begin(timers)
