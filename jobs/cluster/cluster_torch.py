"""astra on a cluster over what a user would take instead on one of its nodes: PyTorch, one thread, the same ViT.

mpirun -n 4 python jobs/cluster/cluster_torch.py MODEL.h5 [--codebooks FILE.h5] [--compute float32,bfloat16,int8]
    [--network 10Mbps] [--speed 2] [--rivals torch,torch-bfloat16] [--rounds 7]
jobs/cluster/cluster.sh run 4 python jobs/cluster/cluster_torch.py MODEL.h5 --network real
Without a cluster, clocks are virtual: CPU seconds of every rank times --speed (2: nodes of half a core), and the
exchanges of --network by arithmetic (docs/explanation/network.md); the rival's are its CPU seconds times --speed. On
the emulated cluster all is wall time. Counted keys are off. All take turns; medians in ms, ratios are medians over
rounds; JSON last.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import COMPUTES
from astra_mpi.files.modelfile import read_model


def rival_passes(path: str, names: list[str], inputs: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Of rank 0."""
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
    from versus import torch_pass
    from versus_torch import torch_twin

    file = read_model(path)
    twin = torch_twin(file.config, {name: np.asarray(weight, np.float32) for name, weight in file.weights.items()})
    return {name: torch_pass(twin, inputs, name.partition("-")[2], decoder=False) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--codebooks")
    names = {"type": lambda text: [name for name in text.split(",") if name]}
    parser.add_argument("--compute", **names, default=list(COMPUTES))
    parser.add_argument("--rivals", **names, default=["torch", "torch-bfloat16"])
    parser.add_argument("--network", default="10Mbps")
    parser.add_argument("--speed", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    emulated = args.network != "real"
    here: Any = {"network": args.network, "clock": "virtual", "speed": args.speed} if emulated else {}
    load: Any = dict(comm=comm, codebooks=args.codebooks, counted_keys=False, threads=1, **here)
    models = {
        f"{strategy} {compute}": astra_mpi.load(args.model, strategy=strategy, compute=compute, **load)
        for compute in args.compute
        for strategy in ("single", "astra")
    }
    inputs, _ = random_batch(next(iter(models.values())).config, 1)
    rivals = rival_passes(args.model, args.rivals, inputs) if comm.Get_rank() == 0 else {}
    clock = time.process_time if emulated else time.perf_counter
    speed = args.speed if emulated else 1.0
    seconds: dict[str, list[float]] = {name: [] for name in (*models, *args.rivals)}
    for i in range(1 + args.rounds):  # the first one warms up
        for name, model in models.items():
            model(inputs)
            seconds[name].append(model.report["latency_s"]["total"])
        for name, call in rivals.items():
            start_s = clock()
            call()
            seconds[name].append((clock() - start_s) * speed)
        comm.Barrier()
        if comm.Get_rank() == 0 and i:
            print(f"round {i}", {name: round(1e3 * values[-1]) for name, values in seconds.items()}, flush=True)
    if comm.Get_rank() == 0:
        show({name: 1e3 * np.array(values[1:]) for name, values in seconds.items()}, args.rivals, comm.Get_size())


def show(ms: dict[str, np.ndarray], rivals: list[str], n_ranks: int) -> None:
    found: dict[str, Any] = {}
    for name, values in ms.items():
        single = name.replace("astra", "single")
        over = {other: round(float(np.median(ms[other] / values)), 2) for other in dict.fromkeys((single, *rivals))}
        found[name] = {"median_ms": round(float(np.median(values)), 1), "faster_than": over}
        print(f"{name:<18}{found[name]['median_ms']:>9}  " + "  ".join(f"{r}x of {other}" for other, r in over.items()))
    print(json.dumps({"ranks": n_ranks, "found": found}))


if __name__ == "__main__":
    main()
