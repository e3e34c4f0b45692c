"""How fast products of each type are here, measured in milliseconds: what a path is chosen by, and what others tell."""

import time
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from astra_mpi.kernels.cpu._features import path
from astra_mpi.kernels.cpu._weights import widen
from astra_mpi.kernels.cpu.products.calls import layer
from astra_mpi.kernels.cpu.products.layout import STRIP, empty, pack

#: columns of weights that are drawn; more repeat them
_DRAWN = 4096


def gain(compute: str, by: str, m: int = 192, k: int = 768, n: int = 512, laps: int = 7) -> float:
    """How much faster products of a type are than float32 ones, by a path: CPU seconds of this thread, the best of
    some short laps, in turns, so that what else runs here changes little.
    """
    calls = _product("float32", m, k, n, "blas"), _product(compute, m, k, n, by)
    best = [float("inf")] * 2
    with threadpool_limits(1, "blas"):
        for _ in range(laps + 1):  # the first one warms up
            for i, call in enumerate(calls):
                begin = time.thread_time()
                call()
                best[i] = min(best[i], time.thread_time() - begin)
    return best[0] / best[1]


def gflops(
    compute: str,
    m: int,
    k: int,
    n: int,
    by: str = "",
    least_s: float = 0.002,
    laps: int = 5,
    now: Callable[[], float] = time.perf_counter,
) -> float:
    """10^9 operations per second of x (m, k) @ weights (k, n), two to a multiply-add, in products of type `compute`.

    by: a path that this CPU has; "": that of this process. The median of laps of at least so many seconds, each with
    rounding of x and all else that a product takes, of this thread and its team. now: the clock, in seconds.
    """
    call = _product(compute, m, k, n, by or path(compute).name)
    call()
    begin = now()
    call()
    count = max(1, round(least_s / max(1e-7, now() - begin)))
    return 2e-9 * m * k * n / float(np.median([_lap_s(call, count, now) for _ in range(laps)]))


def _lap_s(call: Callable[[], object], count: int, now: Callable[[], float]) -> float:
    begin = now()
    for _ in range(count):
        call()
    return (now() - begin) / count


def _product(compute: str, m: int, k: int, n: int, by: str) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, min(n, _DRAWN)), np.float32)
    out = np.empty((m, n), np.float32)
    if by == "blas":
        weight = np.resize(weight, (k, n))
        return lambda: np.matmul(x, weight, out=out)
    if by == "widened":
        narrow = np.zeros((k, n), np.uint16 if compute == "bfloat16" else np.int8)
        wide = np.empty((k, n), np.float32)
        return lambda: np.matmul(x, widen(narrow, None, 0, wide), out=out)
    strips = empty(compute, k, n)
    pack(strips, 0, weight)
    words, drawn = strips.words.reshape(strips.n_strips, -1), -(-weight.shape[1] // STRIP)
    for first in range(drawn, len(words), drawn):
        words[first : first + drawn] = words[: len(words) - first][:drawn]
    return lambda: layer(x, strips, out, by=by)
