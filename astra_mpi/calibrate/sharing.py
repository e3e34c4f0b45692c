"""Kernels whose searches all ranks and threads share: each takes some rows, and every rank gets all codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
from mpi4py import MPI

from astra_mpi.errors import collective
from astra_mpi.partition import displs, even
from astra_mpi.ranks.watched import alone

#: multiply-adds of a search below which telling the others takes longer
_WORTH = 1 << 24


class SharedKernels:
    """The kernels of a module, but that searches are collective: the same calls with the same sizes on every rank.

    A code does not depend on which rows are searched together, so it is the same whoever shares the work. What fails on
    one rank between two searches is to be raised by `errors.collective_steps`: the others hear of it in the next one.
    """

    def __init__(self, kernels: ModuleType, comm: MPI.Comm, pool: ThreadPoolExecutor, threads: int) -> None:
        self._kernels, self._comm, self._pool, self._threads = kernels, comm, pool, threads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def encode_grouped(self, x: np.ndarray, entries: np.ndarray, half_norms: np.ndarray) -> np.ndarray:
        """See kernels.reference."""
        return self._shared(self._kernels.encode_grouped, x, entries, half_norms)

    def encode_residual(self, x: np.ndarray, entries: np.ndarray, half_norms: np.ndarray) -> np.ndarray:
        """See kernels.reference."""
        return self._shared(self._kernels.encode_residual, x, entries, half_norms)

    def _shared(self, encode: Callable[..., np.ndarray], x: np.ndarray, *book: np.ndarray) -> np.ndarray:
        if len(x) * book[0].size < _WORTH:
            return encode(x, *book)
        counts = even(len(x), self._comm.Get_size())
        starts, rank = displs(counts), self._comm.Get_rank()
        mine = x[starts[rank] : starts[rank + 1]]
        if self._comm.Get_size() == 1:
            return self._searched(encode, mine, book)
        with collective(self._comm), alone(self._comm, "searching codes"):
            codes = self._searched(encode, mine, book)
            every = np.empty((len(x), codes.shape[1]), codes.dtype)
            own, all_of_them = codes.view(np.uint8), [every.view(np.uint8), counts * codes.shape[1] * codes.itemsize]
        self._comm.Allgatherv(own, all_of_them)
        return every

    def _searched(self, encode: Callable[..., np.ndarray], x: np.ndarray, book: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate(self.in_parts(lambda rows: encode(x[rows], *book), len(x)))

    def each(self, work: Callable[[Any], None], items: Iterable[Any]) -> None:
        """`work` on every item, by this rank's threads."""
        for future in [self._pool.submit(work, item) for item in items]:
            future.result()

    def in_parts(self, work: Callable[[slice], np.ndarray], n: int) -> list[np.ndarray]:
        """What `work` makes of each thread's part of n rows, in order."""
        ends = displs(even(n, self._threads))
        futures = [self._pool.submit(work, slice(int(a), int(b))) for a, b in pairwise(ends) if a < b]
        return [future.result() for future in futures] or [work(slice(0, 0))]


@contextmanager
def shared_kernels(kernels: ModuleType, comm: MPI.Comm, threads: int) -> Iterator[SharedKernels]:
    """Collective; with so many threads of this rank."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield SharedKernels(kernels, comm, pool, threads)
    finally:
        pool.shutdown(cancel_futures=True)
