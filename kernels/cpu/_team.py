"""A team of threads that works on one thing.

A task has as many shares as there are threads; the caller's thread does one of them, and returns when all are done.
`run(f)` calls f(index, count) on every thread, the interpreter's lock in its hands: good for compiled functions, which
release it, and nothing that takes less than 0.1 ms. `run_native` has no use for the interpreter: it writes what each
share needs into memory, and threads that wait in a compiled function call a C function with it (`_post.py`).

Where shares depend on each other, a compiled function calls `barrier(at, count)` (`_barrier.py`) between its stages,
with the address of `barrier_words()`, which all threads get: no thread passes before all have arrived.

    words = barrier_words()                       # kept alive by the caller, reused from call to call
    run(lambda index, count: kernel(.., words.ctypes.data, index, count))

    @compiled()
    def kernel(.., at, index, count):
        ..                                        # stage 1, columns index, index + count, ..
        barrier(at, count)                        # every thread, the same number of times, whatever its share
        ..                                        # stage 2 may read what all have written in stage 1

A kernel with barriers must not raise between them. With one thread, nothing is started and the barrier is free.
"""

import struct
import threading
from collections.abc import Callable

import numpy as np

from astra_mpi.kernels._compile import Native
from astra_mpi.kernels.aligned import address, aligned
from astra_mpi.kernels.cpu import _post

Task = Callable[[int, int], object]
#: what a native task's share needs, as numbers of 64 bits
Share = Callable[[int, int], tuple[int, ...]]
#: of them, at most
_MOST = 96


class Team:
    """`size` threads, of which the caller's is one. The others wait for tasks without using their cores for long."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._task: Task | None = None
        self._failures: list[BaseException] = []
        self._closed = False
        self._arguments = _Arguments(size)
        self._board = _post.board(size)
        self._at = address(self._board)
        for index in range(1, size):
            threading.Thread(target=self._work, args=(index,), daemon=True).start()
        if size > 1:
            self.run(lambda index, count: None)  # which compiles what they wait in

    def run(self, task: Task) -> None:
        """task(index, size) on every thread. What one of them raised is raised here, after all have ended."""
        failures: list[BaseException] = []
        self._task, self._failures = task, failures
        try:
            self._tell()
            task(0, self.size)
        except BaseException as exc:
            failures.append(exc)
        finally:
            if self.size > 1:
                _post.meet(self._at, self.size)  # also after an interrupt: the others work on the caller's arrays
        self._task = None
        if failures:
            raise failures[0]

    def run_native(self, task: Native, share: Share) -> None:
        """The C function on every thread, with what share(index, size) says."""
        for index in range(self.size):
            self._arguments.write(index, share(index, self.size))
        _check(_post.lead(self._at, task.address, self._arguments.at, self._arguments.step, self.size) == 0)

    def close(self) -> None:
        """End the threads."""
        self._closed = True
        self._tell()

    def _tell(self) -> None:
        """That there is a task which the interpreter has."""
        if self.size > 1:
            _post.post(self._at, 0, 0, 0, self.size)

    def _work(self, index: int) -> None:
        number = 0
        while True:
            number = _post.serve(self._at, index, number)
            if self._closed:
                return
            try:
                if self._task is not None:
                    self._task(index, self.size)
            except BaseException as exc:
                self._failures.append(exc)


def _check(done: bool) -> None:
    if not done:
        raise RuntimeError("a compiled kernel failed on a thread; its error is printed above")


class _Arguments:
    """Of the shares of a native task."""

    def __init__(self, count: int) -> None:
        self._words = aligned((count, _MOST), np.int64)
        self._bytes = memoryview(self._words).cast("B")
        self.at, self.step = address(self._words), self._words.strides[0]

    def write(self, index: int, words: tuple[int, ...]) -> None:
        assert len(words) <= _MOST
        struct.pack_into(f"{len(words)}q", self._bytes, index * self.step, *words)


class _Alone(threading.local):
    """What a thread writes that does a native task by itself."""

    def __init__(self) -> None:
        self.arguments = _Arguments(1)


class _State:
    team = Team(1)
    taken = threading.Lock()
    alone = _Alone()


def set_size(n_threads: int) -> None:
    """How many threads `run` uses from now on."""
    with _State.taken:
        if n_threads != _State.team.size:
            _State.team.close()
            _State.team = Team(n_threads)


def size() -> int:
    """How many threads `run` uses."""
    return _State.team.size


def run(task: Task) -> None:
    """task(index, count) on every thread of the process's team.

    While another thread of the program has the team, the caller does all of it alone, as task(0, 1).
    """
    if not _State.taken.acquire(blocking=False):
        task(0, 1)
        return
    try:
        _State.team.run(task)
    finally:
        _State.taken.release()


def run_native(task: Native, share: Share, alone: bool = False) -> None:
    """The C function, once for each share(index, count), on every thread of the process's team.

    While another thread of the program has the team, and if `alone`, the caller does all of it, as share(0, 1). What
    the numbers are addresses of must live until this returns; memory that a share works in is its caller's, by index.
    """
    if alone or _State.team.size == 1 or not _State.taken.acquire(blocking=False):
        _State.alone.arguments.write(0, share(0, 1))
        _check(_post.alone(task.address, _State.alone.arguments.at) == 1)
        return
    try:
        _State.team.run_native(task, share)
    finally:
        _State.taken.release()
