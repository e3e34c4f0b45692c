"""Short measurements: the speed of this rank's kernels, and of the links between ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from astra_mpi.costs.latency import Speeds
from astra_mpi.kernels.integers import integers

if TYPE_CHECKING:
    from mpi4py import MPI

#: ViT-Base on 256 tokens of 1024, codes of M = 4, K = 256: large enough that calls cost nothing
ROWS, KEYS, WIDTH, HEADS, INNER, STAGES, SIZE = 256, 1024, 768, 12, 3072, 4, 256
#: float32 numbers of weights that one token meets: 64 MiB, more than a core's share of any cache
STREAMED = 1 << 24
_TAG = 7
_FIRST_BYTES, _LAST_BYTES = 1 << 13, 1 << 23
_MAX_PINGS = 20


def kernel_speeds(kernels: ModuleType, repeats: int = 5, now: Callable[[], float] = time.perf_counter) -> Speeds:
    """Of this rank, in float32 with the project's kernels; the median of `repeats` each. now: the clock, in seconds."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    x, inner, weight, line = draw(ROWS, WIDTH), draw(ROWS, INNER), draw(WIDTH, INNER), np.ones(INNER, np.float32)
    residual, summed = draw(ROWS, WIDTH), np.empty_like(x)
    entries = draw(STAGES, SIZE, WIDTH)
    half_norms = (entries**2).sum(axis=2) / 2
    square = integers(draw(WIDTH, WIDTH))
    tables = draw(STAGES, SIZE, 2 * WIDTH)
    many = np.ones((WIDTH, STREAMED // WIDTH), np.float32)
    codes = rng.integers(0, SIZE, (KEYS - ROWS, STAGES)).astype(np.uint8)

    def between() -> None:
        for _ in range(2):
            kernels.layer_norm(x, line[:WIDTH], line[:WIDTH], 1e-5)
            np.add(x, residual, out=summed)
        kernels.activate(inner, line, "gelu")

    def seconds(work: Callable[[], object]) -> float:
        return _median_s(work, repeats, now)

    return Speeds(
        gemm=ROWS * WIDTH * INNER / seconds(lambda: x @ weight),
        attention=attention_speed(kernels, repeats, now),
        encode=ROWS * WIDTH * SIZE * STAGES / seconds(lambda: kernels.encode_residual(x, entries, half_norms)),
        states=ROWS * WIDTH * WIDTH / seconds(lambda: kernels.integer_product([x], square, summed)),
        table=codes.size * 2 * WIDTH / seconds(lambda: kernels.table_sum(codes, tables, None, tables[0, 0])),
        elements=ROWS * (4 * WIDTH + INNER) / seconds(between),
        stream=many.size / seconds(lambda: x[:1] @ many),
        block_s=_median_s(lambda: _small_block(kernels), 4 * repeats, now),
    )


def attention_speed(kernels: ModuleType, repeats: int = 5, now: Callable[[], float] = time.perf_counter) -> float:
    """Multiply-adds per second, with the begin and the end of the softmax."""
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((HEADS, ROWS, WIDTH // HEADS), np.float32)
    keys = rng.standard_normal((2, HEADS, KEYS, WIDTH // HEADS), np.float32)
    state = np.empty_like(queries), *np.empty((2, *queries.shape[:2]), np.float32)
    attended = np.empty((ROWS, WIDTH), np.float32)

    def attend() -> None:
        for sums, first in zip(state, (0, -np.inf, 0), strict=True):
            sums[...] = first
        kernels.attend(queries, *keys, None, None, *state)
        kernels.finish(state[0], state[2], attended)

    return 2 * ROWS * KEYS * WIDTH / _median_s(attend, repeats, now)


def _small_block(kernels: ModuleType) -> None:
    """The calls of a block on one token of a model of width 8: what a block costs whatever its size."""
    x, line, square = np.ones((1, 8), np.float32), np.ones(8, np.float32), np.ones((8, 8), np.float32)
    head = kernels.layer_norm(x, line, line, 1e-5).reshape(1, 1, 8)
    acc, row = np.zeros((1, 1, 8), np.float32), np.zeros((1, 1), np.float32)
    for _ in range(4):
        x @ square + line
    for _ in range(2):  # own keys, far keys
        kernels.attend(head, head, head, None, None, acc, row, row)
    kernels.finish(acc, row, x)
    kernels.activate(kernels.layer_norm(x, line, line, 1e-5), line, "gelu")


def _median_s(work: Callable[[], object], repeats: int, now: Callable[[], float]) -> float:
    work()
    laps = []
    for _ in range(repeats):
        start_s = now()
        work()
        laps.append(now() - start_s)
    return float(np.median(laps))


def quiet_barrier(comm: MPI.Comm) -> None:
    """Collective: wait without taking a core from the ranks that still work."""
    arrived = comm.Ibarrier()
    while not arrived.Test():
        time.sleep(1e-3)


def measure_links(comm: MPI.Comm, budget_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Collective: (P, P) round-trip seconds and (P, P) bits per second from row to column, NaN on the diagonal.

    Pair by pair, each alone on the network. `budget_s` is shared between them; a message under way is always finished.
    """
    rank, size = comm.Get_rank(), comm.Get_size()
    rtt_s, bandwidth_bps = np.zeros((2, size, size))
    for first in range(size):
        for second in range(first + 1, size):
            for sender, receiver in ((first, second), (second, first)):
                if rank == sender:
                    share_s = budget_s / (size * (size - 1))
                    rtt_s[sender, receiver], bandwidth_bps[sender, receiver] = _probe(comm, receiver, share_s)
                elif rank == receiver:
                    _answer(comm, sender)
            quiet_barrier(comm)
    for mine in (rtt_s, bandwidth_bps):
        comm.Allreduce(mine.copy(), mine)
        np.fill_diagonal(mine, np.nan)
    return rtt_s, bandwidth_bps


def _probe(comm: MPI.Comm, peer: int, budget_s: float) -> tuple[float, float]:
    """Round-trip seconds and bits per second to `peer`, which is in `_answer`."""
    end_s = time.perf_counter() + budget_s
    _send(comm, peer, 1)  # connections are made at first use
    pings = [_send(comm, peer, 1)]
    while len(pings) < _MAX_PINGS and time.perf_counter() + pings[-1] < end_s - 0.75 * budget_s:
        pings.append(_send(comm, peer, 1))
    rtt_s = float(np.median(pings))
    n_bytes, previous_s, lap_s = _FIRST_BYTES, rtt_s, _send(comm, peer, _FIRST_BYTES)
    while n_bytes < _LAST_BYTES and time.perf_counter() + 2 * lap_s < end_s:
        n_bytes *= 2
        previous_s, lap_s = lap_s, _send(comm, peer, n_bytes)
    comm.Send(np.array([0]), dest=peer, tag=_TAG)
    # the last doubling: what each message costs beside its bytes, such as a handshake, falls out
    extra_bytes = n_bytes if n_bytes == _FIRST_BYTES else n_bytes // 2
    extra_s = lap_s - previous_s if lap_s > 1.2 * previous_s else lap_s * extra_bytes / n_bytes
    return rtt_s, 8 * extra_bytes / extra_s


def _send(comm: MPI.Comm, peer: int, n_bytes: int) -> float:
    """Seconds until `peer` has confirmed a message of `n_bytes`."""
    message, done = np.zeros(n_bytes, np.uint8), np.empty(1, np.uint8)
    comm.Send(np.array([n_bytes]), dest=peer, tag=_TAG)
    start_s = time.perf_counter()
    comm.Send(message, dest=peer, tag=_TAG)
    comm.Recv(done, source=peer, tag=_TAG)
    return time.perf_counter() - start_s


def _answer(comm: MPI.Comm, peer: int) -> None:
    n_bytes = np.empty(1, np.int64)
    while True:
        comm.Recv(n_bytes, source=peer, tag=_TAG)
        if n_bytes[0] == 0:
            return
        comm.Recv(np.empty(n_bytes[0], np.uint8), source=peer, tag=_TAG)
        comm.Send(np.zeros(1, np.uint8), dest=peer, tag=_TAG)
