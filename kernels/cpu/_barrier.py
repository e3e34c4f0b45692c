"""Numbers in memory that threads share, and a barrier for use inside compiled functions."""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from astra_mpi.kernels._compile import compiled

_I32, _I64 = ir.IntType(32), ir.IntType(64)
#: bytes between numbers that different threads change: they share no line of the cache, nor a pair of lines
APART = 128
#: looks at a number before the core is offered to others
PATIENCE = 2000


def barrier_words() -> np.ndarray:
    """What a barrier counts in: its address is that of the array."""
    return np.zeros(2 * APART // 8, np.int64)


@intrinsic
def fetch_add(typingctx, address, value):
    """The int64 at an address, to which a value is added at once, for all threads to see in one order."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def fetch(typingctx, address):
    """The int64 at an address, as the other threads left it."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(builder.inttoptr(arguments[0], _I64.as_pointer()), "seq_cst", 8)

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
        turn = fetch(at + APART)  # type: ignore[call-arg, var-annotated]
        if fetch_add(at, 1) == count - 1:
            fetch_add(at, -count)
            fetch_add(at + APART, 1)
        else:
            looks = 0
            while fetch(at + APART) == turn:
                looks += 1
                if looks > PATIENCE:  # more threads than cores
                    give_way()
