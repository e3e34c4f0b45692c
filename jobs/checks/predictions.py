"""The cost model's predictions for one rank, held against CPU seconds of the same: each type of products in turns.

python jobs/checks/predictions.py MODEL.h5 [--tokens T] [--new-tokens N] [--rounds 5] [--types float32,bfloat16,int8]
Speeds are measured first, as `doctor` does. Prints a line per type: the first answer (of decoders the first token), and
each further token, predicted and measured in ms, the least of the rounds, and the error.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.costs.decode import decode_cost, head_work
from astra_mpi.costs.latency import Network, Speeds, latency
from astra_mpi.costs.setting import Setting, compute_seconds
from astra_mpi.costs.strategies import single
from astra_mpi.costs.types import kept_bytes, storage_of, stored
from astra_mpi.device.backend import COMPUTES
from astra_mpi.doctor.probes import kernel_speeds
from astra_mpi.doctor.products import speeds_by_type
from astra_mpi.engine import Model
from astra_mpi.models.decoder import Decoder


def predicted(model: Model, speeds: Speeds, n_tokens: int, n_new: int) -> tuple[float, float]:
    """Seconds to the first answer, and of each further token."""
    kept = kept_bytes(model.backend.compute, model.config.d_head)
    setting = Setting(model.config, n_tokens, (speeds,), Network(1e9, 0.0), kept_bytes=kept)
    job = setting.job([n_tokens])
    first_s = latency(single(job), setting.speeds, setting.network).total + speeds.seconds(head_work(setting.shape, 1))
    if not n_new:
        return first_s, 0.0
    return first_s, compute_seconds(setting, decode_cost(job, setting.coding, "single", "local", n_new))


def measured(model: Model, inputs: np.ndarray, n_new: int) -> tuple[float, float]:
    """The same, in CPU seconds, which the virtual clock of one rank counts; of the tokens the median."""
    if not n_new:
        model(inputs)
        return model.report["latency_s"]["total"], 0.0
    model.generate(inputs, max_new_tokens=1 + n_new)
    made = model.report["generation"]
    return made["first_token_s"], made["per_token_s"]["median"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--new-tokens", type=int, default=16, help="of decoders (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--types", default=",".join(COMPUTES))
    args = parser.parse_args()
    types = args.types.split(",")
    options = {"comm": MPI.COMM_SELF, "strategy": "single", "clock": "virtual"}
    models = {compute: astra_mpi.load(args.model, compute=compute, **options) for compute in types}
    first = next(iter(models.values()))
    inputs, _ = random_batch(first.config, 1, args.tokens)
    n_tokens = int(first.config.grid[0] * first.config.grid[1]) if first.config.family == "vit" else inputs.shape[1]
    n_new = args.new_tokens if isinstance(first.family, Decoder) else 0
    plain = kernel_speeds(astra_mpi.kernels.cpu, now=time.thread_time)
    told = speeds_by_type(plain, now=time.thread_time)
    for model in models.values():  # which makes tables and buffers
        measured(model, inputs, n_new)
    laps: dict[str, list[tuple[float, float]]] = {c: [] for c in types}
    for _ in range(args.rounds):
        for compute, model in models.items():
            laps[compute].append(measured(model, inputs, n_new))
    print(f"{args.model}, {n_tokens} tokens, {n_new} new ones; ms predicted, measured, error")
    for compute, model in models.items():
        speeds = stored(Speeds(**told[compute]["speeds"]), compute, storage_of(model.weights))
        expected, took = predicted(model, speeds, n_tokens, n_new), np.min(laps[compute], axis=0)
        cells = [f"{1e3 * a:9.2f}{1e3 * b:9.2f}{a / b - 1:+8.0%}" for a, b in zip(expected, took, strict=True) if b]
        print(f"{compute:<10}{told[compute]['path']:<13}" + "   ".join(cells), flush=True)
        print("   " + ", ".join(f"{k} {v * 1e-9:.2f}" for k, v in vars(speeds).items() if v and k != "block_s"))


if __name__ == "__main__":
    main()
