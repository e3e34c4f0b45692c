"""Peak memory of a rank beyond its weights, against the sum of the buffers it needs.

mpirun -n 4 python jobs/bench/memory.py MODEL.h5 [--codebooks FILE] [--strategy astra]
python jobs/bench/memory.py MODEL.h5 --decodes [--compute int8]
What the first forward pass adds to the resident memory at its peak (Linux, /proc), the scratch buffers that the model
keeps by name, and what the strategy makes when it is chosen, such as astra's projected tables. Largest rank.
--decodes: instead, what a decoder holds that has been loaded and has generated some tokens, over the bytes of its file:
by how much the process has grown, after the same with another copy has compiled everything.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import mmap
import resource
from pathlib import Path

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.weights import Narrow
from astra_mpi.engine import Model

MIB = 1 << 20


def resident_bytes(field: str) -> int:
    """VmRSS, or VmHWM: the highest since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    ctypes.CDLL(None).malloc_trim(0)  # what was freed earlier would hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")


def touch(model: Model) -> None:
    """Bring the mapped weights into memory, so that a pass does not seem to take it."""
    for weight in model.weights.values():
        numbers = weight.values if isinstance(weight, Narrow) else weight
        numbers.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max()


def decoding_bytes(path: str, compute: str) -> int:
    """By how much this process grows with a decoder that is loaded and generates tokens."""
    for _ in range(2):  # the first one compiles
        gc.collect()
        reset_peak()
        before = resident_bytes("VmRSS")
        model = astra_mpi.load(path, comm=MPI.COMM_SELF, strategy="single", threads=1, compute=compute)
        model.generate(np.zeros((1, 8), np.int64), max_new_tokens=8)
        grown = resident_bytes("VmRSS") - before
        del model
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model file")
    parser.add_argument("--codebooks", help="codebook file, instead of the codebooks in the model")
    parser.add_argument("--strategy", default="single", help="default %(default)s")
    parser.add_argument("--decodes", action="store_true", help="a loaded decoder over its file")
    parser.add_argument("--compute", default="int8", help="with --decodes, default %(default)s")
    args = parser.parse_args()
    if args.decodes:
        held, stored = decoding_bytes(args.model, args.compute) / MIB, Path(args.model).stat().st_size / MIB
        print(f"{args.model} in {args.compute}: holds {held:.1f} MiB, its file has {stored:.1f}: {held / stored:.2f}")
        return
    comm = MPI.COMM_WORLD
    model = astra_mpi.load(args.model, comm=comm, strategy="single", codebooks=args.codebooks)
    inputs, mask = random_batch(model.config, 1)
    touch(model)
    reset_peak()
    before = resident_bytes("VmRSS")
    model.use(args.strategy, counted_keys=False)
    touch(model)
    reset_peak()
    start = resident_bytes("VmRSS")
    model(inputs, mask)
    peak, buffers = resident_bytes("VmHWM") - start, sum(model.scratch.sizes.values())
    faults = -resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(inputs, mask)
    faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    row = np.array([start - before, peak, buffers, faults], np.float64)
    comm.Allreduce(MPI.IN_PLACE, row, op=MPI.MAX)
    if comm.rank == 0:
        weights = sum(array.nbytes for array in model.weights.values())
        tables_mib, peak_mib, buffers_mib = row[:3] / MIB
        print(f"{args.strategy} on {comm.size} ranks; MiB of the largest; weights {weights / MIB:.0f}")
        print(f"made by the strategy {tables_mib:.1f}, peak beyond {peak_mib:.1f}, buffers {buffers_mib:.1f},", end=" ")
        print(f"ratio {peak_mib / buffers_mib:.2f}; page faults of the next pass {row[3]:.0f}")
        print("rank 0: " + ", ".join(f"{name} {size / MIB:.1f}" for name, size in model.scratch.sizes.items()))


if __name__ == "__main__":
    main()
