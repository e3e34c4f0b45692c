"""How a team's threads are told of a task, and tell its end, without the interpreter: numbers in memory that both look
at for a while, and a lock and two conditions of the system's threads for those that have looked long enough.

A native task is a C function f(arguments, index, count) on an address and two numbers, share `index` of `count`. It
returns 1, or 0 if it raised something, such as that there is no memory, which is printed.
"""

import ctypes

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.aligned import address, aligned
from astra_mpi.kernels.cpu._barrier import APART, PATIENCE, fetch, fetch_add, give_way
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._memory import longs

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_POINTER = ir.IntType(8).as_pointer()
#: offers of the core before a caller sleeps, some 0.1 ms, for to be woken takes as long; and before the others do,
#: some 0.5 ms, which is longer than what lies between two tasks of a pass
_CALLERS_OFFERS, _OFFERS = 200, 1000
#: where they lie, in bytes: the number of the task and what it is (_TASK words), how many threads sleep, and callers,
#: shares that failed, the lock, the two conditions, and the number of the last task that each thread has ended
_NUMBER, _ASLEEP, _CALLER_ASLEEP, _FAILED, _LOCK, _POSTED, _MET, _ENDED = (APART * i for i in range(8))
#: number of the task, address of its function (0: the interpreter has it), of the arguments of the first share, bytes
#: from there to those of the next one, number of shares
_TASK = 5


def board(count: int) -> np.ndarray:
    """What `count` threads look at; the others get its address."""
    words = aligned((_ENDED + APART * count,), np.uint8)
    system, at = ctypes.CDLL(None), address(words)
    system.pthread_mutex_init(ctypes.c_void_p(at + _LOCK), None)
    for condition in (_POSTED, _MET):
        system.pthread_cond_init(ctypes.c_void_p(at + condition), None)
    return words


def _system(name, n_addresses):
    """An intrinsic: the function of the system's threads, on addresses."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_I32, [_POINTER] * n_addresses)
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        builder.call(function, [builder.inttoptr(one, _POINTER) for one in arguments])
        return context.get_dummy_value()

    def one(typingctx, at):
        return types.void(types.int64), generate

    def two(typingctx, at, other):
        return types.void(types.int64, types.int64), generate

    return intrinsic(one if n_addresses == 1 else two)


_lock, _unlock = _system("pthread_mutex_lock", 1), _system("pthread_mutex_unlock", 1)
_wait, _wake = _system("pthread_cond_wait", 2), _system("pthread_cond_broadcast", 1)


@intrinsic
def call(typingctx, function, arguments, index, count):
    """The native task at an address."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_I64, [_I64] * 3)
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int64(*[types.int64] * 4), generate


@compiled()
def alone(function, arguments):
    """A native task that is one share -> what it returns."""
    return call(function, arguments, 0, 1)  # type: ignore[call-arg]


@compiled()
def post(at, function, arguments, step, count):
    """Tell all threads of a task."""
    task = longs(at, _TASK)
    task[1], task[2], task[3], task[4] = function, arguments, step, count
    fetch_add(at + _NUMBER, 1)
    if fetch(at + _ASLEEP) > 0:
        _lock(at + _LOCK)
        _wake(at + _POSTED)
        _unlock(at + _LOCK)


@compiled()
def lead(at, function, arguments, step, count):
    """A native task on all threads, the caller's the first -> how many shares failed, when all have ended."""
    post(at, function, arguments, step, count)
    failed = 1 - call(function, arguments, 0, count)  # type: ignore[call-arg]
    meet(at, count)
    others = fetch(at + _FAILED)
    fetch_add(at + _FAILED, -others)
    return failed + others


@compiled()
def meet(at, count):
    """Wait until all other threads have ended the last task."""
    number = fetch(at + _NUMBER)
    for look in range(PATIENCE + _CALLERS_OFFERS):
        if _ended(at, number, count):
            return
        if look > PATIENCE:
            give_way()
    _lock(at + _LOCK)
    fetch_add(at + _CALLER_ASLEEP, 1)
    while not _ended(at, number, count):
        _wait(at + _MET, at + _LOCK)
    fetch_add(at + _CALLER_ASLEEP, -1)
    _unlock(at + _LOCK)


@inner()
def _ended(at, number, count):
    there = 1
    for index in range(1, count):
        there += fetch(at + _ENDED + APART * index) == number
    return there == count


@compiled()
def serve(at, index, seen):
    """Thread `index` has ended task `seen`, does its share of the native ones that follow, and returns with the number
    of the first one that the interpreter has."""
    while True:
        _end(at, index, seen)
        seen = _next(at, seen)
        task = longs(at, _TASK)
        if task[1] == 0:
            return seen
        if call(task[1], task[2] + index * task[3], index, task[4]) != 1:  # type: ignore[call-arg]
            fetch_add(at + _FAILED, 1)


@inner()
def _end(at, index, number):
    place = at + _ENDED + APART * index
    fetch_add(place, number - fetch(place))
    if fetch(at + _CALLER_ASLEEP) > 0:
        _lock(at + _LOCK)
        _wake(at + _MET)
        _unlock(at + _LOCK)


@inner()
def _next(at, seen):
    """Wait for a task after that one -> its number."""
    for look in range(PATIENCE + _OFFERS):
        number = fetch(at + _NUMBER)
        if number != seen:
            return number
        if look > PATIENCE:
            give_way()
    _lock(at + _LOCK)
    fetch_add(at + _ASLEEP, 1)
    while fetch(at + _NUMBER) == seen:
        _wait(at + _POSTED, at + _LOCK)
    fetch_add(at + _ASLEEP, -1)
    _unlock(at + _LOCK)
    return fetch(at + _NUMBER)
