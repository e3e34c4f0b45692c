"""Speed-ups over one node of the emulated cluster: single, sp in both forms, and astra with several codebook files.

jobs/cluster/cluster.sh run 4 python jobs/cluster/cluster_table.py MODEL.h5 --codebooks A.h5,B.h5
    [--json PATH] [--trace PATH]
All take turns, counted keys off; sp, which a slow link makes slow, only for --sp-repeats rounds. Beside the program's
own figures stand outer ones: wall time around the call, and what the nodes' interfaces count, over the bytes that
every rank must send to all others. jobs/cluster/cluster_table.sh runs it at several bandwidths.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.engine import Model
from astra_mpi.files import whole
from astra_mpi.files.codecfile import read_codebooks
from astra_mpi.measure.bench import trace

COUNTER = Path("/sys/class/net/eth0/statistics/tx_bytes")  # a rank sees its own node's
COLUMNS = ("total_s", "outer_s", "wait_s", "counted_bytes")


def strategies(model: Model, codebooks: list[str]) -> dict[str, Any]:
    """Prepared strategies by name."""
    found = {}
    for name in ("single", "sp", "sp:kv"):
        model.use(name)
        found[name] = model.strategy
    for path in codebooks:
        model.codec = read_codebooks(path, model.digest)
        model.use("astra", counted_keys=False)
        found[f"astra {Path(path).stem}"] = model.strategy
    return found


def one_pass(model: Model, inputs: np.ndarray) -> list[float]:
    """`COLUMNS` of a forward pass: seconds of the slowest rank, bytes over all nodes."""
    comm = model.comm
    comm.Barrier()
    before, start_s = int(COUNTER.read_text()), time.perf_counter()
    model(inputs)
    outer = np.array([time.perf_counter() - start_s])
    counted = np.array([float(int(COUNTER.read_text()) - before)])
    comm.Allreduce(MPI.IN_PLACE, outer, op=MPI.MAX)
    comm.Allreduce(MPI.IN_PLACE, counted)
    latency = model.report["latency_s"]
    return [latency["total"], float(outer[0]), latency["exchange_wait"], float(counted[0])]


def summarise(name: str, passes: np.ndarray, single: np.ndarray, report: dict[str, Any]) -> dict[str, Any]:
    """Medians of passes (repeats, columns); the speed-up is the median over rounds."""
    speedups = single[: len(passes), 0] / passes[:, 0]
    sent = sum(report["contributed_bytes"]) * (report["ranks"] - 1)
    figures = dict(zip(COLUMNS, np.median(passes, axis=0).tolist(), strict=True))
    return {
        "strategy": name,
        **figures,
        "repeats": len(passes),
        "speedup": float(np.median(speedups)),
        "quartiles": np.quantile(speedups, (0.25, 0.75)).tolist(),
        "formula_bytes": sum(report["formula_bytes"]),
        "contributed_bytes": sum(report["contributed_bytes"]),
        "counted_over_sent": figures["counted_bytes"] / sent if sent else None,
        "distinct_keys": report["distinct_keys"],
        "phases": report["latency_s"]["phases"],
    }


def show(rows: list[dict[str, Any]], ranks: int) -> None:
    print(f"{ranks} nodes; ms, medians, slowest rank; bytes of all ranks in one pass")
    heads = f"{'total':>9}{'outer':>9}{'wait':>9}{'speed-up':>9}{'quartiles':>14}"
    print(f"{'strategy':<26}{heads}{'contributed':>13}{'counted':>11}{'/ sent':>8}{'keys':>6}")
    for row in rows:
        times = "".join(f"{1e3 * row[name]:>9.1f}" for name in COLUMNS[:3])
        quartiles = "{:.3g}..{:.3g}".format(*row["quartiles"])
        ratio = "-" if row["counted_over_sent"] is None else f"{row['counted_over_sent']:.3f}"
        keys = "-" if row["distinct_keys"] is None else f"{row['distinct_keys']:.0f}"
        print(
            f"{row['strategy']:<26}{times}{row['speedup']:>8.3g}x{quartiles:>14}"
            f"{row['contributed_bytes']:>13}{row['counted_bytes']:>11.0f}{ratio:>8}{keys:>6}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model file")
    parser.add_argument("--codebooks", required=True, help="codebook files for it, with commas between")
    parser.add_argument("--repeats", type=int, default=7, help="default %(default)s")
    parser.add_argument("--sp-repeats", type=int, default=3, help="default %(default)s")
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--trace", metavar="PATH", help="one pass of the first astra as a Chrome trace")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    model = astra_mpi.load(args.model, comm=comm, strategy="single")
    inputs, _ = random_batch(model.config, 1)
    prepared = strategies(model, args.codebooks.split(","))
    passes: dict[str, list[list[float]]] = {name: [] for name in prepared}
    reports = {}
    for i in range(1 + args.repeats):  # the first round warms up
        for name, strategy in prepared.items():
            if name.startswith("sp") and not 1 <= i <= args.sp_repeats:
                continue
            model.strategy = strategy
            figures = one_pass(model, inputs)
            if i:
                passes[name].append(figures)
                reports[name] = model.report
    model.strategy = next(strategy for name, strategy in prepared.items() if name.startswith("astra"))
    text = trace(model, inputs, None) if args.trace else None
    if comm.Get_rank() == 0:
        single = np.array(passes["single"])
        rows = [summarise(name, np.array(passes[name]), single, reports[name]) for name in prepared if passes[name]]
        show(rows, comm.Get_size())
        if args.json:
            whole.write_text(args.json, json.dumps({"ranks": comm.Get_size(), "runs": rows}, indent=2))
        if text is not None:
            whole.write_text(args.trace, text)


if __name__ == "__main__":
    main()
