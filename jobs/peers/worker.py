"""A process of a contestant on one node: loads, and then runs what is asked of it, turn by turn.

Started by processes.py, once on every node of the contestant. Requests come by a pipe, because a process that waits in
MPI computes, and would take the time of those whose turn it is.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from contestants import DLLAMA, LLAMA, ONNX, OURS, TORCH

from astra_mpi.files import whole

LIBRARIES = {OURS: "run_ours", LLAMA: "run_llama", TORCH: "run_torch", ONNX: "run_onnx", DLLAMA: "run_dllama"}


def peak_bytes(pid: str = "self") -> int:
    """Resident, of a process so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def answered(run: Any, ids: np.ndarray, request: dict[str, Any]) -> dict[str, Any]:
    """What a turn took here; rank 0 has tokens and times."""
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    tokens, at = run(ids[: request["tokens"]], request["new"], **request["call"])
    cpu_s = time.process_time() - begin_cpu_s
    answer: dict[str, Any] = {"tokens": tokens, "cpu_s": cpu_s, "peak_bytes": peak_bytes()}
    if at:
        wall, cpu = np.array(at).T
        answer["first_s"], answer["first_cpu_s"] = float(wall[0] - begin_s), float(cpu[0] - begin_cpu_s)
        if len(at) > 1:
            answer["token_s"], answer["token_cpu_s"] = (float(np.median(np.diff(ends))) for ends in (wall, cpu))
    return answer


def serve(run: Any, ids: np.ndarray, folder: Path, rank: int) -> None:
    """Requests by a pipe, a line each, until the other end is closed."""
    with open(folder / f"requests-{rank}") as requests:
        for turn, line in enumerate(requests):
            whole.write_text(folder / f"answer-{turn}-{rank}.json", json.dumps(answered(run, ids, json.loads(line))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with load.json and pipes, for answers")
    args = parser.parse_args()
    told = json.loads((args.folder / "load.json").read_text())
    files, rank = Path(told["files"]), int(os.environ.get("PMI_RANK", "0"))
    sys.path.append(str(files.parent / "python"))
    begin_s = time.perf_counter()
    library = "run_encoder" if "encoder" in told["load"] else LIBRARIES[told["peer"]]
    run = importlib.import_module(library).prepare(files, told["load"])
    ready = {"pid": os.getpid(), "load_s": time.perf_counter() - begin_s}
    whole.write_text(args.folder / f"ready-{rank}.json", json.dumps(ready))
    serve(run, np.load(files / "prompt.npy"), args.folder, rank)


if __name__ == "__main__":
    main()
