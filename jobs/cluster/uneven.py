"""What a measured cut is worth on uneven machines: astra with tokens cut evenly and in proportion to speed, A B A B.

jobs/cluster/cluster.sh up 4 100 0.7,0.6,0.4,0.3
jobs/cluster/cluster.sh run 4 python jobs/cluster/uneven.py MODEL.h5 [--codebooks FILE] [--pairs 7]
The ideal is sum(speeds) / (P * slowest): all finish together, against waiting for the slowest. Counted keys are off.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.engine import Model


def waits(model: Model) -> list[float]:
    """Seconds that each rank spent inside MPI in the last pass."""
    every = np.empty(model.comm.Get_size())
    model.comm.Allgather(np.array([model.laps.seconds["exchange"]]), every)
    return every.round(3).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model file")
    parser.add_argument("--codebooks", help="codebook file, instead of the codebooks in the model")
    parser.add_argument("--pairs", type=int, default=7, help="default %(default)s")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    model = astra_mpi.load(args.model, comm=comm, codebooks=args.codebooks, weights="auto", counted_keys=False)
    speeds = np.array(model.cut_weights)
    inputs, _ = random_batch(model.config, 1)
    cuts: dict[str, Any] = {"auto": (model.strategy, model.cut_weights)}
    model.use("astra", counted_keys=False)
    cuts["even"] = (model.strategy, None)
    totals: dict[str, list[float]] = {name: [] for name in cuts}
    last_waits = {}
    for i in range(1 + args.pairs):
        for name, (model.strategy, model.cut_weights) in cuts.items():
            comm.Barrier()
            model(inputs)
            last_waits[name] = waits(model)
            if i:
                totals[name].append(model.report["latency_s"]["total"])
    ratios = np.array(totals["even"]) / np.array(totals["auto"])
    result = {
        "speeds": speeds.tolist(),
        "tokens": {name: strategy.planned.token_counts.tolist() for name, (strategy, _) in cuts.items()},
        **{f"{name}_ms": round(1e3 * float(np.median(values)), 1) for name, values in totals.items()},
        "over_even": round(float(np.median(ratios)), 3),
        "quartiles": [round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.75))],
        "ideal": round(float(speeds.sum() / (len(speeds) * speeds.min())), 3),
        "last_wait_s": last_waits,
    }
    if comm.Get_rank() == 0:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
