"""This project as a contestant."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import astra_mpi


def prepare(files: Path, load: dict[str, Any]) -> Any:
    """Collective. -> run(ids (T,), new tokens, decode=) -> (tokens, (seconds, CPU seconds) at each), on rank 0."""
    comm = MPI.COMM_WORLD
    options: Any = {"codebooks": str(files / load["codebooks"]) if "codebooks" in load else None}
    options |= {"grid": load.get("grid"), "weights": "causal" if comm.Get_size() > 1 else None}
    model = astra_mpi.load(
        str(files / load["model"]), comm=comm, strategy=load["strategy"], compute=load["compute"], threads=1, **options
    )

    def run(ids: np.ndarray, n_new: int, decode: str = "local") -> tuple[list[int], list[tuple[float, float]]]:
        at: list[tuple[float, float]] = []

        def known(step: int, chosen: np.ndarray) -> None:
            at.append((time.perf_counter(), time.process_time()))

        new = model.generate(ids[None], max_new_tokens=n_new, decode=decode, on_tokens=known)
        return new[0].tolist(), at

    return run
