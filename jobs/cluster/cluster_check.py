"""Does the emulated cluster give what it promises: cores per node, rates of links, and byte counters that agree?

jobs/cluster/cluster.sh run 4 python jobs/cluster/cluster_check.py [--bytes N,N,...] [--rounds R] [--spin SECONDS]
Prints a table, then the same figures as one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

COUNTER = Path("/sys/class/net/eth0/statistics/tx_bytes")  # a rank sees its own node's


def used_cores(comm: MPI.Comm, duration_s: float) -> np.ndarray:
    """(P,) CPU seconds per second that each rank gets while all of them compute."""
    mine, cores = np.empty(1), np.empty(comm.size)
    comm.Barrier()
    start_s, cpu_s = time.perf_counter(), time.process_time()
    while time.perf_counter() - start_s < duration_s:
        pass
    mine[0] = (time.process_time() - cpu_s) / (time.perf_counter() - start_s)
    comm.Allgather(mine, cores)
    return cores


def time_allgather(comm: MPI.Comm, n_bytes: int, rounds: int) -> dict[str, Any]:
    """Median time of the slowest rank, the rate at which it receives, and bytes counted over bytes asked for."""
    mine, everyone = np.zeros(n_bytes, "u1"), np.empty(comm.size * n_bytes, "u1")
    times_s, sent_bytes = np.empty(rounds), np.zeros(1, "i8")
    comm.Allgather(mine, everyone)  # connections and buffers are made here
    comm.Barrier()
    sent_bytes -= int(COUNTER.read_text())
    for r in range(rounds):
        comm.Barrier()
        start_s = time.perf_counter()
        comm.Allgather(mine, everyone)
        times_s[r] = time.perf_counter() - start_s
    comm.Barrier()
    sent_bytes += int(COUNTER.read_text())
    comm.Allreduce(MPI.IN_PLACE, times_s, op=MPI.MAX)
    comm.Allreduce(MPI.IN_PLACE, sent_bytes)
    asked_bytes = rounds * comm.size * (comm.size - 1) * n_bytes
    return {
        "bytes": n_bytes,
        "rounds": rounds,
        "time_ms": [round(1e3 * float(np.quantile(times_s, q)), 3) for q in (0.25, 0.5, 0.75)],
        "mbps": round((comm.size - 1) * n_bytes * 8e-6 / float(np.median(times_s)), 3),
        "counted": int(sent_bytes[0]),
        "counted_over_asked": round(int(sent_bytes[0]) / asked_bytes, 4),
    }


def show(cores: np.ndarray, rows: list[dict[str, Any]]) -> None:
    print("cores per node: " + " ".join(f"{c:.3f}" for c in cores))
    print("all-gather bytes    ms: quartile, median, quartile    Mbit/s    counted/asked")
    for row in rows:
        low, middle, high = row["time_ms"]
        print(f"{row['bytes']:16d} {low:15.2f} {middle:8.2f} {high:8.2f}", end="")
        print(f" {row['mbps']:11.2f} {row['counted_over_asked']:14.4f}")
    print(json.dumps({"ranks": len(cores), "cores": cores.round(4).tolist(), "allgather": rows}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bytes", default="320,2048,524288", help="of each rank, in an all-gather (default %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="of which the median is taken (default %(default)s)")
    parser.add_argument("--spin", type=float, default=3.0, help="seconds of computing to see the quota (default 3)")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    if comm.size < 2 or "MPIR_CVAR_NOLOCAL" not in os.environ:
        parser.error(
            "start it on the cluster, on two nodes or more: "
            "jobs/cluster/cluster.sh run 2 python jobs/cluster/cluster_check.py"
        )
    cores = used_cores(comm, args.spin)
    rows = [time_allgather(comm, int(n), args.rounds) for n in args.bytes.split(",")]
    if comm.rank == 0:
        show(cores, rows)


if __name__ == "__main__":
    main()
