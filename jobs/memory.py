"""Peak memory of a rank beyond its weights, against the sum of the buffers it needs.

mpirun -n 4 python jobs/memory.py MODEL.h5 [--codebooks FILE] [--strategies single,sp,astra]
For each strategy: what a forward pass adds to the resident memory at its peak (Linux, /proc), the scratch buffers that
the model keeps by name, and what astra's projected tables take. Largest rank.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.scratch import Scratch
from astra_mpi.synthetic import random_batch

MIB = 1 << 20


def resident_bytes(field: str) -> int:
    """VmRSS, or VmHWM: the highest since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model file")
    parser.add_argument("--codebooks", help="codebook file, instead of the codebooks in the model")
    parser.add_argument("--strategies", default="single,sp,astra", help="default %(default)s")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    model = astra_mpi.load(args.model, comm=comm, strategy="single", codebooks=args.codebooks)
    inputs, mask = random_batch(model.config, 1)
    weights = sum(array.nbytes for array in model.weights.values())
    if comm.rank == 0:
        print(f"{comm.size} ranks; MiB of the largest; weights {weights / MIB:.0f}")
        print(f"{'strategy':<12}{'tables':>9}{'peak beyond':>13}{'buffers':>9}{'ratio':>7}")
    for name in args.strategies.split(","):
        before = resident_bytes("VmRSS")
        model.use(name, counted_keys=False)
        tables = resident_bytes("VmRSS") - before if name == "astra" else 0
        scratch = Scratch()  # as for a first pass
        for block in model.blocks:
            block.scratch = scratch
        reset_peak()
        start = resident_bytes("VmRSS")
        model(inputs, mask)
        peak, buffers = resident_bytes("VmHWM") - start, sum(scratch.sizes.values())
        row = np.array([tables, peak, buffers], np.float64)
        comm.Allreduce(MPI.IN_PLACE, row, op=MPI.MAX)
        if comm.rank == 0:
            sizes = " ".join(f"{key} {value / MIB:.1f}" for key, value in scratch.sizes.items())
            tables_mib, peak_mib, buffers_mib = row / MIB
            print(
                f"{name:<12}{tables_mib:>9.1f}{peak_mib:>13.1f}{buffers_mib:>9.1f}{peak_mib / buffers_mib:>7.2f}",
                end="",
            )
            print(f"  rank 0: {sizes}")


if __name__ == "__main__":
    main()
