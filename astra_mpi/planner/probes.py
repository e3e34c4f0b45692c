"""Short measurements, tenths of a second: how fast these ranks multiply, and their link (docs/explanation/planner.md).

`probes.py` measures more, and longer: what `doctor` reports.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.costs.latency import Network
from astra_mpi.costs.work import shape_of
from astra_mpi.device.xp import settle
from astra_mpi.errors import collective
from astra_mpi.ranks.watched import waiting

if TYPE_CHECKING:
    from mpi4py import MPI

    from astra_mpi.engine import Model
    from astra_mpi.models.block import Block

_TAG = 11
#: most rows, and most multiply-adds, of the matrix product: a millisecond of one core
_ROWS, _MADDS = 128, 1 << 25
#: a core that is not all ours, by others or by a quota, is watched for longer: quotas come in periods, often of 10 ms
_LEAST_S, _SHARED_S, _OURS = 0.01, 0.06, 0.9
#: messages grow until they take so much longer than an empty one
_FIRST_BYTES, _LAST_BYTES, _ENOUGH_S = 1 << 13, 1 << 21, 4e-3
#: of a message the quickest lap counts, of so many, or of fewer that have taken so long together
_LAPS, _LONG_S = 4, 0.03
_NAP_S = 1e-4


def gemm_speeds(model: Model, n_tokens: int) -> np.ndarray:
    """Collective: multiply-adds per second (P,) of every rank, in a product of the shape of the model's MLP.

    All ranks at once, by the model's clock.
    """
    config, backend, clock = model.config, model.backend, model.clock
    every = np.empty(model.comm.Get_size())
    with collective(model.comm):
        rows = min(n_tokens, _ROWS)
        columns = max(1, min(config.d_ff, _MADDS // (config.d_model * rows)))
        x = backend.put(np.ones((rows, config.d_model), np.float32))
        weight = backend.put(np.ones((config.d_model, columns), np.float32))
        settle(x @ weight)
    model.comm.Barrier()
    with collective(model.comm), clock.running():
        n_products, start_s, begin_s, cpu_s = 0, clock.now(), time.perf_counter(), time.thread_time()
        while n_products == 0 or not _long_enough(time.perf_counter() - begin_s, time.thread_time() - cpu_s):
            settle(x @ weight)
            n_products += 1
        speed = n_products * rows * config.d_model * columns / (clock.now() - start_s)
    model.comm.Allgather(np.array([speed]), every)
    return every


def block_speeds(model: Model, n_tokens: int) -> np.ndarray:
    """Collective: multiply-adds per second (P,) of every rank in the products of the model's first block, with what
    lies between them. All ranks at once, by the model's clock."""
    clock, block, every = model.clock, model.blocks[0], np.empty(model.comm.Get_size())
    with collective(model.comm):
        rows = min(n_tokens, _ROWS)
        x = model.backend.put(np.random.default_rng(0).standard_normal((rows, model.config.d_model), dtype=np.float32))
        one_pass(block, x)
    model.comm.Barrier()
    with collective(model.comm), clock.running():
        n_passes, start_s, begin_s, cpu_s = 0, clock.now(), time.perf_counter(), time.thread_time()
        while n_passes == 0 or not _long_enough(time.perf_counter() - begin_s, time.thread_time() - cpu_s):
            one_pass(block, x)
            n_passes += 1
        speed = n_passes * rows * block_multiply_adds(model.config) / (clock.now() - start_s)
    model.comm.Allgather(np.array([speed]), every)
    return every


def one_pass(block: Block, x: np.ndarray) -> None:
    """Rows (n, D) through a block but for its attention."""
    queries, _ = block.queries_keys_values(block.attention_input(x))
    block.output(x.copy(), block.scratch.xp.ascontiguousarray(queries))
    settle(queries)


def block_multiply_adds(config: Any) -> int:
    """Of a row, in the products of a block."""
    shape = shape_of(config)
    return 2 * shape.project_q + shape.project_kv + shape.mlp


def _long_enough(passed_s: float, cpu_s: float) -> bool:
    return passed_s >= (_LEAST_S if cpu_s >= _OURS * passed_s else _SHARED_S)


def measure_link(comm: MPI.Comm) -> Network:
    """Collective: ports as fast as the slowest of these, from messages that every rank sends to all others at once.

    comm: one on which nobody else sends. Half a round trip is what an empty message takes.
    """
    _lap(comm, 1)  # connections are made at first use
    half_trip_s = _quickest_s(comm, 1)
    empty_s, n_bytes = _quickest_s(comm, 1, _NAP_S), _FIRST_BYTES
    while True:
        extra_s = _quickest_s(comm, n_bytes, _NAP_S) - empty_s
        if extra_s > max(_ENOUGH_S, empty_s) or n_bytes >= _LAST_BYTES:
            break
        n_bytes *= 4
    return Network(8 * (comm.Get_size() - 1) * n_bytes / max(extra_s, 1e-6), 2 * half_trip_s)


def _quickest_s(comm: MPI.Comm, n_bytes: int, nap_s: float = 0.0) -> float:
    laps: list[float] = []
    while len(laps) < _LAPS and sum(laps) < _LONG_S:
        laps.append(_lap(comm, n_bytes, nap_s))
    return min(laps)


def _lap(comm: MPI.Comm, n_bytes: int, nap_s: float = 0.0) -> float:
    """Collective: seconds in which every rank has sent `n_bytes` to each other one; of the slowest, told to all.

    nap_s: between two looks, which leaves a CPU quota unspent that would be missing in the end.
    """
    from mpi4py import MPI

    others = [r for r in range(comm.Get_size()) if r != comm.Get_rank()]
    message, room = np.zeros(n_bytes, np.uint8), np.empty((len(others), n_bytes), np.uint8)
    _until_done([comm.Ibarrier()], comm, nap_s)
    start_s = time.perf_counter()
    requests = [comm.Irecv(buffer, other, _TAG) for buffer, other in zip(room, others, strict=True)]
    requests += [comm.Isend(message, other, _TAG) for other in others]
    _until_done(requests, comm, nap_s)
    mine, slowest = np.array([time.perf_counter() - start_s]), np.empty(1)
    comm.Allreduce(mine, slowest, op=MPI.MAX)
    return float(slowest[0])


def _until_done(requests: list[MPI.Request], comm: MPI.Comm, nap_s: float) -> None:
    from mpi4py import MPI

    with waiting(comm, "a short message"):
        if not nap_s:
            MPI.Request.Waitall(requests)
        while nap_s and not MPI.Request.Testall(requests):
            time.sleep(nap_s)
