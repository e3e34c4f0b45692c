"""How far it scales: P ranks of this machine timed as P machines by the virtual clock, one row of the table.

mpirun -n 8 python jobs/bench/scale.py FOLDER --tokens 16384 [--layers 2] [--network 100Mbps,rtt=1ms] [--repeats 3]
ViT-Base shape, G = 1, K = 256, against `single` in the same run, counted keys on and off. Codes are spread uniformly
over the codebook, the worst case for counted keys: they are drawn at random after the encoder has done its work.
Makes FOLDER/scale-TOKENS-LAYERS.h5 when it is not there. Prints one JSON line; jobs/bench/scale.sh runs all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.presets import preset_config, random_model
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.threads import set_threads
from astra_mpi.errors import collective
from astra_mpi.files.modelfile import write_model
from astra_mpi.measure.bench import measure


class UniformCodes(BlockCodec):
    """The same codebooks at the same cost, whose codes are then drawn from a uniform distribution."""

    def encode(self, x: np.ndarray, kernels: Any) -> np.ndarray:
        codes = super().encode(x, kernels)
        rng = np.random.default_rng((MPI.COMM_WORLD.rank, len(x)))
        return rng.integers(0, self.size, codes.shape).astype(codes.dtype)


def model_path(folder: Path, n_tokens: int, n_layers: int) -> Path:
    """The random model of this size, made if it is not there."""
    path = folder / f"scale-{n_tokens}-{n_layers}.h5"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = dataclasses.replace(preset_config("vit-base", n_tokens), n_layers=n_layers)
        write_model(path, random_model(config, CodecConfig(kind="grouped", codebook_size=256), 0))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the models")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--network", default="100Mbps,rtt=1ms", help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default %(default)s")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    set_threads(1)
    with collective(comm):
        path = model_path(args.folder, args.tokens, args.layers) if comm.rank == 0 else None
    path = comm.bcast(path)
    model = astra_mpi.load(str(path), comm=comm, strategy="single", network=args.network, clock="virtual")
    strategies = [model.strategy]
    assert model.codec is not None
    model.codec = dataclasses.replace(
        model.codec, blocks=tuple(UniformCodes(block.codebooks) for block in model.codec.blocks)
    )
    for counted in (True, False):
        model.use("astra", counted_keys=counted)
        strategies.append(model.strategy)
    inputs, _ = random_batch(model.config, 1)
    single, counted_run, plain = measure(model, strategies, inputs, None, args.repeats, warmup=1)
    if comm.rank == 0:
        row = {"ranks": comm.size, "tokens": args.tokens, "layers": args.layers, "network": args.network}
        row["single_s"] = round(single["latency_s"]["total"], 4)
        for name, run in (("counted", counted_run), ("plain", plain)):
            row |= {
                f"{name}_s": round(run["latency_s"]["total"], 4),
                f"{name}_x": round(run["spread"]["over_first"], 2),
            }
            row[f"{name}_wait_s"] = round(run["latency_s"]["exchange_wait"], 4)
        print(json.dumps({**row, "distinct_keys": counted_run["distinct_keys"], "clock": counted_run["clock"]}))


if __name__ == "__main__":
    main()
