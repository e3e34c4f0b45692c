"""Memory that a long prompt takes on every rank, against the sum of the buffers it needs.

mpirun -n 4 python jobs/bench/long_prompt.py MODEL.h5 [--tokens N] [--strategy astra] [--new 8]
Generates a few tokens after a random prompt as long as the model takes. Per rank: the highest resident memory beyond
that of the loaded model and its codebooks' tables (Linux, /proc), and the buffers by name. All of them grow with the
tokens, none with their square.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from memory import MIB, reset_peak, resident_bytes
from mpi4py import MPI

import astra_mpi


def buffers(model: astra_mpi.Model, n_tokens: int) -> dict[str, int]:
    """Bytes on this rank, of the forward pass that went before."""
    config, layout = model.config, model.strategy.planned
    n_far, n_own = len(layout.far_index), int(layout.token_counts[layout.rank])
    counted = getattr(model.strategy, "counted_keys", False)
    found = {
        "scratch": sum(model.scratch.sizes.values()),
        "block input": 4 * n_own * config.d_model,
        "far keys and values": 0 if counted else 4 * n_far * 2 * config.d_kv,
        "cache": model.report["generation"]["cache_bytes"][layout.rank],
        "codes": sum(codes.nbytes for codes in getattr(model.strategy, "codes", [])),
        "messages": sum(model.strategy.counts),
    }
    if model.strategy.turns is not None:
        found["turns of positions"] = 2 * 4 * n_tokens * config.d_head
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model file of a decoder")
    parser.add_argument("--tokens", type=int, help="of the prompt (default: as many as the model takes)")
    parser.add_argument("--strategy", default="astra", help="default %(default)s")
    parser.add_argument("--new", type=int, default=8, help="tokens to generate (default %(default)s)")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    model = astra_mpi.load(args.model, comm=comm, strategy=args.strategy, remote="table")
    n_tokens = args.tokens or model.config.max_positions - args.new
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, n_tokens))
    model.generate(ids[:, :64], max_new_tokens=2)  # compiled, and weights read, before the measurement
    comm.Barrier()
    reset_peak()
    start = resident_bytes("VmRSS")
    model.generate(ids, max_new_tokens=args.new, far="codes")
    peak = resident_bytes("VmHWM") - start
    found = buffers(model, n_tokens)
    every = np.empty((comm.size, 2), np.int64)
    comm.Allgather(np.array([model.strategy.planned.token_counts[comm.rank], peak], np.int64), every)
    sums = np.empty((comm.size, len(found)), np.int64)
    comm.Allgather(np.array(list(found.values()), np.int64), sums)
    if comm.rank == 0:
        report, generation = model.report, model.report["generation"]
        square = n_tokens**2 * 4 / comm.size / MIB
        print(f"{Path(args.model).stem}, {args.strategy}, {n_tokens} tokens, {comm.size} ranks; MiB", end="")
        print(f" (a rank's share of one T x T float32 array: {square:.0f})")
        for rank, ((n_own, peak), row) in enumerate(zip(every, sums, strict=True)):
            parts = ", ".join(f"{name} {size / MIB:.1f}" for name, size in zip(found, row, strict=True) if size)
            print(f"  rank {rank}: {n_own} tokens, peak {peak / MIB:.0f}, buffers {row.sum() / MIB:.0f} ({parts})")
        keys = report["distinct_keys"]
        print(
            f"  first token {generation['first_token_s']:.1f} s, per token {generation['per_token_s']['median']:.4f} s,"
        )
        print(f"  counted keys {report['choices'].get('counted_keys')}, distinct keys {keys and round(keys, 1)}")


if __name__ == "__main__":
    main()
