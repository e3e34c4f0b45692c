"""A team of threads that works on one thing: Python threads that enter a compiled function together, and a barrier
for use inside it.

A task is a function f(index, count) that does share `index` of `count`; `run(f)` calls it on every thread of the team,
the caller's included, and returns when all are done. Compiled kernels release the interpreter's lock, so the shares
run at once. Where shares depend on each other, the compiled function calls `barrier(at, count)` between its stages,
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

import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from astra_mpi.kernels._compile import compiled

_I32, _I64 = ir.IntType(32), ir.IntType(64)
#: bytes between the counter of arrivals and the counter of rounds: they share no cache line
_APART = 128
#: looks at the counter before the core is offered to others
_PATIENCE = 2000
#: offers of the core, some 0.1 ms, before a thread sleeps: to be woken takes as long
_OFFERS = 200

Task = Callable[[int, int], object]


def barrier_words() -> np.ndarray:
    """What a barrier counts in: its address is that of the array."""
    return np.zeros(2 * _APART // 8, np.int64)


@intrinsic
def fetch_add(typingctx, address, value):
    """The int64 at an address, to which a value is added at once, for all threads to see."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def fetch(typingctx, address):
    """The int64 at an address, as the other threads left it."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(builder.inttoptr(arguments[0], _I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def give_way(typingctx):
    """Let another thread have this core, if one waits for it."""

    def generate(context, builder, signature, arguments):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I32, []), "sched_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), generate


@compiled()
def barrier(at, count):
    """Wait until all `count` threads are here; `at`: address of `barrier_words()`."""
    if count > 1:
        turn = fetch(at + _APART)  # type: ignore[call-arg, var-annotated]
        if fetch_add(at, 1) == count - 1:
            fetch_add(at, -count)
            fetch_add(at + _APART, 1)
        else:
            looks = 0
            while fetch(at + _APART) == turn:
                looks += 1
                if looks > _PATIENCE:  # more threads than cores
                    give_way()


@compiled()
def look_for(at, count, number):
    """Wait a little for `count` int64 at an address to be `number`, each written by a thread of its own; and then as
    long as such a thread takes to give back the interpreter's lock."""
    for look in range(_PATIENCE + _OFFERS):
        if look > _PATIENCE:
            give_way()  # type: ignore[call-arg]
        there = 0
        for i in range(count):
            there += fetch(at + 8 * i) == number  # type: ignore[call-arg]
        if there == count:
            break
    for _ in range(_PATIENCE):
        fetch(at)  # type: ignore[call-arg]


class Team:
    """`size` threads, of which the caller's is one. The others wait for tasks without using their cores."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._tasks: list[SimpleQueue[tuple[Task, int] | None]] = [SimpleQueue() for _ in range(size - 1)]
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._n_runs, self._ended = 0, np.zeros(size - 1, np.int64)  # the last run that each of the others has ended
        for index, tasks in enumerate(self._tasks, start=1):
            threading.Thread(target=self._work, args=(tasks, index), daemon=True).start()
        self._look()  # which compiles it

    def run(self, task: Task) -> None:
        """task(index, size) on every thread. What one of them raised is raised here, after all have ended."""
        self._n_runs += 1
        for tasks in self._tasks:
            tasks.put((task, self._n_runs))
        failures: list[BaseException | None] = []
        try:
            task(0, self.size)
        except BaseException as exc:
            failures.append(exc)
        self._look()
        failures += [self._done.get() for _ in self._tasks]
        for failure in failures:
            if failure is not None:
                raise failure

    def _look(self) -> None:
        """Wait a little for the others."""
        if self._tasks:
            look_for(self._ended.ctypes.data, len(self._ended), self._n_runs)

    def close(self) -> None:
        """End the threads."""
        for tasks in self._tasks:
            tasks.put(None)

    def _work(self, tasks: "SimpleQueue[tuple[Task, int] | None]", index: int) -> None:
        for task, number in iter(tasks.get, None):
            failure: BaseException | None = None
            try:
                task(index, self.size)
            except BaseException as exc:
                failure = exc
            self._done.put(failure)
            self._ended[index - 1] = number


class _State:
    team = Team(1)
    taken = threading.Lock()


def set_size(n_threads: int) -> None:
    """How many threads `run` uses from now on."""
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
