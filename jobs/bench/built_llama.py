"""llama.cpp as jobs/peers/get.sh has built it, in a process that tells its CPU time at every token.

A process of its own, because it describes the tiles of AMX once in a thread, and other users of tiles take that away.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PEERS = Path(__file__).parents[1] / "peers"


class BuiltLlama:
    """One thread on a GGUF file."""

    def __init__(self, work: str, gguf: str, flash: bool) -> None:
        if not (Path(work) / "llama" / "done").exists():
            raise SystemExit(f"{work} has no llama.cpp: WORK={work} bash jobs/peers/get.sh builds it there")
        if not Path(gguf).exists():
            raise SystemExit(f"{gguf} does not exist; --gguf takes GGUF files")
        told = json.dumps({"gguf": str(Path(gguf).absolute()), "flash": flash})
        command = [sys.executable, __file__, str(Path(work).absolute()), told]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, ids: np.ndarray, n_new: int) -> list[float]:
        """CPU milliseconds at the beginning and at each of n_new tokens after the prompt."""
        asked, answered = self._process.stdin, self._process.stdout
        assert asked is not None and answered is not None
        asked.write(json.dumps({"ids": ids.tolist(), "n_new": n_new}) + "\n")
        asked.flush()
        told: list[float] = json.loads(answered.readline())
        return told


def serve(work: Path, told: str) -> None:
    sys.path.append(str(PEERS))
    from run_llama import prepare

    complete = prepare(work / "files", json.loads(told))
    for line in sys.stdin:
        asked = json.loads(line)
        begin_s = time.process_time()
        _, ends = complete(np.array(asked["ids"]), asked["n_new"])
        print(json.dumps([0.0, *(1e3 * (cpu_s - begin_s) for _, cpu_s in ends)]), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2])
