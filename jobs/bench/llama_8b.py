"""A model of Llama-3-8B's shape, random weights in bfloat16: made, loaded, and 128 tokens prefilled in one process.

python jobs/bench/llama_8b.py [--preset llama-3-8b] [--tokens 128] [--passes 2] [--limit-gb 20] [--keep]
Needs 16 GB of disk under work/ (or WORK) and about as much memory. The file is removed at the end unless --keep. Prints
seconds on the clock and of the CPU, and memory of this process: anonymous, mapped from the file (the system can take it
back), and the highest sum of both. Exit code 1 where that is above the limit.
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

GB = 1e9


def memory_gb() -> dict[str, float]:
    """Of this process (Linux): anonymous, file pages, and the highest of both together so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"anonymous": "RssAnon", "file": "RssFile", "peak": "VmHWM"}
    return {name: round(int(lines[field].split()[0]) * 1024 / GB, 2) for name, field in names.items()}


def make(path: Path, preset: str) -> dict[str, float]:
    """The model file, in a process of its own: how long it took and how much memory at most."""
    start = time.perf_counter()
    options = ["--dtype", "bfloat16", "--no-codebooks"]
    subprocess.run([sys.executable, "-m", "astra_mpi", "init", preset, str(path), *options], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / GB
    return {"make_s": round(time.perf_counter() - start, 1), "make_peak_gb": round(peak, 2)}


def load_and_prefill(path: Path, n_tokens: int, n_passes: int) -> dict[str, object]:
    import numpy as np
    from mpi4py import MPI

    import astra_mpi

    start, cpu = time.perf_counter(), time.process_time()
    model = astra_mpi.load(str(path), comm=MPI.COMM_SELF, strategy="single", threads=1)
    laps = {"wall": round(time.perf_counter() - start, 1), "cpu": round(time.process_time() - cpu, 1)}
    found: dict[str, object] = {"load_s": laps, "loaded_gb": memory_gb()}
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, n_tokens))
    seconds = []
    for _ in range(n_passes):
        start, cpu = time.perf_counter(), time.process_time()
        logits = model(ids)
        seconds.append({"wall": round(time.perf_counter() - start, 1), "cpu": round(time.process_time() - cpu, 1)})
    found["prefill_s"] = seconds
    assert logits.shape == (1, model.config.vocab_size) and np.isfinite(logits).all()
    phases = {name: round(value, 2) for name, value in model.report["latency_s"]["phases"].items() if value > 0.01}
    weights_gb = round(model.report["weight_bytes"][0] / GB, 2)
    return found | {"phases_s": phases, "weights_gb": weights_gb, "prefilled_gb": memory_gb()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="llama-3-8b")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--passes", type=int, default=2, help="the first one also reads the file's pages")
    parser.add_argument("--limit-gb", type=float, default=20.0)
    parser.add_argument("--keep", action="store_true", help="leave the file, and use it where it is there already")
    args = parser.parse_args()
    folder = Path(os.environ.get("WORK", "work/llama"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{args.preset}-bfloat16.h5"
    try:
        made = {} if args.keep and path.exists() else make(path, args.preset)
        found = load_and_prefill(path, args.tokens, args.passes)
    finally:
        if not args.keep:
            path.unlink(missing_ok=True)
    print(json.dumps({"model": args.preset, "tokens": args.tokens, **made, **found}))
    return int(found["prefilled_gb"]["peak"] > args.limit_gb)  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main())
