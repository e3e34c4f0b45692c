"""What this project's contestants on four nodes cost in perplexity: codes, products and weights together."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from contestants import CONTESTANTS, NODES, OURS, Contestant

DECK = Path(__file__).parents[1] / "accuracy" / "perplexity.toml"
WINDOW = 1024  # tokens


def perplexities(files: Path, text: Path) -> dict[str, float]:
    """By `Contestant.process`."""
    ours = {one.process: one for one in CONTESTANTS if one.peer == OURS and one.nodes == NODES}
    return {process: _perplexity(files, text, one) for process, one in ours.items()}


def _perplexity(files: Path, text: Path, one: Contestant) -> float:
    """Of a text in windows, by `run` on as many ranks as there are nodes. Stages of blocks compute what one rank does,
    so one rank does."""
    output = files / "language" / f"{one.name}.out.h5"
    told = {
        "model.path": files / one.load["model"],
        "input.path": text,
        "input.max_tokens": WINDOW,
        "task.stride": WINDOW,
        "parallel.strategy": one.load["strategy"],
        "parallel.compute": one.load["compute"],
        "parallel.first": "codes",
        "run.batch": 1,
        "run.resume": "false",
        "output.path": output,
    }
    if "codebooks" in one.load:
        told["model.codebooks"] = files / one.load["codebooks"]
    start = [] if "grid" in one.load else ["mpirun", "-n", str(NODES)]
    words = [f"{key}={value}" for key, value in told.items()]
    subprocess.run([*start, "astra-mpi", "run", str(DECK), *words], check=True, stdin=subprocess.DEVNULL)
    return float(json.loads(output.with_suffix(".json").read_text())["metrics"]["perplexity"])
