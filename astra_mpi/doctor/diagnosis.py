"""A look at the ranks of a communicator: where they run, how fast they are, how they are linked."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.device.backend import get_backend
from astra_mpi.doctor.findings import findings
from astra_mpi.doctor.gpuaware import gpu_answer
from astra_mpi.doctor.placement import kernel_cache, placement
from astra_mpi.doctor.probes import kernel_speeds, measure_links, quiet_barrier
from astra_mpi.doctor.products import instructions, speeds_by_type

if TYPE_CHECKING:
    from mpi4py import MPI

FORMAT = "astra-mpi-doctor"


def examine(comm: MPI.Comm, files: list[str], gpu: bool, links_s: float) -> dict[str, Any] | None:
    """Collective: what `plan --profile` reads, on rank 0; None elsewhere.

    files: compared by size and sha256. gpu: try whether MPI takes GPU memory. links_s: seconds for all links together.
    """
    facts = placement(comm, files)
    facts["gpu"] = gpu_answer(gpu)
    kernels = get_backend("numpy", comm).kernels
    facts["kernel_cache"] = kernel_cache()  # known once they are compiled
    comm.Barrier()  # all at once, as in use: ranks that share cores are to feel each other
    plain = kernel_speeds(kernels)
    facts["speeds"], facts["cpu"] = dataclasses.asdict(plain), instructions()
    facts["compute"] = speeds_by_type(plain)
    quiet_barrier(comm)
    rtt_s, bandwidth_bps = measure_links(comm, links_s)
    ranks = gather_json(comm, facts)
    if ranks is None:
        return None
    return {
        "format": FORMAT,
        "ranks": ranks,
        "links": {"rtt_s": _listed(rtt_s), "bandwidth_bps": _listed(bandwidth_bps)},
        "findings": [finding.as_dict() for finding in findings(ranks, bandwidth_bps, rtt_s)],
    }


def gather_json(comm: MPI.Comm, facts: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Collective: the facts of every rank on rank 0, None elsewhere."""
    mine = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    counts = np.empty(comm.Get_size(), np.int64)
    comm.Allgather(np.array([mine.size]), counts)
    every = np.empty(int(counts.sum()), np.uint8) if comm.Get_rank() == 0 else None
    comm.Gatherv(mine, [every, counts] if every is not None else None)
    if every is None:
        return None
    return [json.loads(part.tobytes()) for part in np.split(every, np.cumsum(counts)[:-1])]


def _listed(links: np.ndarray) -> list[list[float | None]]:
    """(P, P) as JSON, null on the diagonal."""
    return [[None if np.isnan(x) else float(x) for x in row] for row in links]
