"""A model of Llama-3-8B's shape, random weights in bfloat16: made, loaded, and 128 tokens prefilled.

python jobs/bench/llama_8b.py [--preset llama-3-8b] [--tokens 128] [--passes 2] [--limit-gb 20] [--keep]
mpirun -n 4 python jobs/bench/llama_8b.py --grid 1x4x1 [--strategy single]      over ranks (jobs/bench/llama_8b.sh)
Needs 16 GB of disk under work/ (or WORK) and about as much memory. One process makes the file, and removes it at the
end unless --keep; several need it made. Prints seconds on the clock and of the CPU, and memory of each rank: anonymous,
mapped from the file (the system can take it back), and the highest sum of both. Exit code 1 where that is above the
limit on some rank. `astra` gets random codebooks: a codebook file beside the model's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GB = 1e9


def memory_gb(comm: Any) -> dict[str, list[float]]:
    """Collective. Of every rank (Linux): anonymous, file pages, and the highest of both together so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"anonymous": "RssAnon", "file": "RssFile", "peak": "VmHWM"}
    return {name: shared(comm, int(lines[field].split()[0]) * 1024 / GB) for name, field in names.items()}


def shared(comm: Any, own: float) -> list[float]:
    """Collective. A number of every rank."""
    import numpy as np

    every = np.empty(comm.size)
    comm.Allgather(np.array([own]), every)
    return [round(float(number), 2) for number in every]


def make(path: Path, preset: str) -> dict[str, float]:
    """The model file, in a process of its own: how long it took and how much memory at most."""
    start = time.perf_counter()
    options = ["--dtype", "bfloat16", "--no-codebooks"]
    subprocess.run([sys.executable, "-m", "astra_mpi", "init", preset, str(path), *options], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / GB
    return {"make_s": round(time.perf_counter() - start, 1), "make_peak_gb": round(peak, 2)}


def random_codebooks(path: Path, model: Path) -> None:
    """A codebook file whose entries nobody fitted: 4 codes of 8 bits for keys, and for values."""
    import numpy as np

    from astra_mpi.codec.block import BlockCodec
    from astra_mpi.codec.codebook import Codebook
    from astra_mpi.codec.codec import Codec
    from astra_mpi.codec.config import CodecConfig
    from astra_mpi.files.codecfile import write_codebooks
    from astra_mpi.files.hdf5 import reading, text
    from astra_mpi.files.modelfile import read_config
    from astra_mpi.files.provenance import provenance

    with reading(model) as file:
        (config, _), digest = read_config(file), text(file, "digest")
    rng, coded = np.random.default_rng(0), CodecConfig(site="kv", stages=4, codebook_size=256)
    shape = coded.n_codebooks, coded.codebook_size, config.d_kv
    books = [Codebook(coded.kind, rng.standard_normal(shape, np.float32), config.d_kv) for _ in range(2)]
    codec = Codec(coded, tuple(BlockCodec(tuple(books)) for _ in range(config.n_layers)))
    write_codebooks(path, codec, digest, provenance("llama_8b.py", source="random entries"), "float16")


def load_and_prefill(path: Path, args: argparse.Namespace, comm: Any) -> dict[str, Any]:
    import numpy as np

    import astra_mpi

    options = {"codebooks": str(path.with_suffix(".codes.h5"))} if args.strategy == "astra" else {}
    laps = Laps(comm)
    model = astra_mpi.load(
        str(path), comm=comm, strategy=args.strategy, grid=args.grid, stages=args.stages, threads=1, **options
    )
    found: dict[str, Any] = {"load_s": laps.taken(), "loaded_gb": memory_gb(comm)}
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, args.tokens))
    seconds = []
    for _ in range(args.passes):
        laps = Laps(comm)
        logits = model(ids)
        seconds.append(laps.taken())
    found["prefill_s"] = seconds
    assert logits.shape == (1, model.config.vocab_size) and np.isfinite(logits).all()
    report = model.report
    phases = {name: round(value, 2) for name, value in report["latency_s"]["phases"].items() if value > 0.01}
    weights_gb = [round(n / GB, 2) for n in report["weight_bytes"]]
    told = {name: report[name] for name in ("blocks", "handed_bytes", "contributed_bytes") if name in report}
    return found | told | {"phases_s": phases, "weights_gb": weights_gb, "prefilled_gb": memory_gb(comm)}


class Laps:
    """Seconds since it was made: on the clock, and of each rank's CPU."""

    def __init__(self, comm: Any) -> None:
        self.comm, self.wall_s, self.cpu_s = comm, time.perf_counter(), time.process_time()

    def taken(self) -> dict[str, Any]:
        """Collective."""
        cpu = shared(self.comm, time.process_time() - self.cpu_s)
        return {"wall": round(time.perf_counter() - self.wall_s, 1), "cpu": cpu}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="llama-3-8b")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--passes", type=int, default=2, help="the first one also reads the file's pages")
    parser.add_argument("--limit-gb", type=float, default=20.0, help="of a rank (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the file, and use it where it is there already")
    parser.add_argument("--grid", help="of several ranks, such as 1x4x1")
    parser.add_argument("--strategy", default="single", help="in a stage (default %(default)s)")
    parser.add_argument("--stages", default="even", help="blocks of each stage: even or auto (default %(default)s)")
    args = parser.parse_args()
    from mpi4py import MPI

    from astra_mpi.errors import collective

    comm = MPI.COMM_WORLD
    folder = Path(os.environ.get("WORK", "work/llama"))
    path = folder / f"{args.preset}-bfloat16.h5"
    alone = comm.size == 1
    made: dict[str, float] = {}
    try:
        if alone and not (args.keep and path.exists()):
            folder.mkdir(parents=True, exist_ok=True)
            made = make(path, args.preset)
        with collective(comm):
            if comm.rank == 0 and args.strategy == "astra":
                random_codebooks(path.with_suffix(".codes.h5"), path)
        found = load_and_prefill(path, args, comm)
    finally:
        if alone and not args.keep:
            path.unlink(missing_ok=True)
    if comm.rank == 0:
        print(json.dumps({"model": args.preset, "grid": args.grid, "tokens": args.tokens, **made, **found}))
    return int(max(found["prefilled_gb"]["peak"]) > args.limit_gb)


if __name__ == "__main__":
    sys.exit(main())
