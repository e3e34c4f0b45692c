"""A training run's state in one HDF5 file: what learns, its optimiser, the codebooks' averages, the step.

Random numbers follow from seed and step, so that nothing else is needed to go on with the same bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from astra_mpi.config import require
from astra_mpi.files import checksum, hdf5

FORMAT = "astra-mpi-checkpoint"
hdf5.FORMATS.setdefault(FORMAT, "a training checkpoint")


def save(path: Path, digest: str, step: int, wall_s: float, cpu_s: float, tensors: dict[str, Tensor]) -> None:
    """`step` steps are done; digest says of which deck and data. The file appears whole or not at all."""
    with hdf5.writing(path) as file:
        file.attrs.update({"format": FORMAT, "version": hdf5.VERSION, "deck": digest, "step": step})
        file.attrs.update({"wall_s": wall_s, "cpu_s": cpu_s})
        group = file.create_group("state")
        for name, tensor in tensors.items():
            group.create_dataset(name, data=tensor.detach().cpu().numpy())
            file.check()


def load(path: Path, digest: str) -> tuple[int, float, float, dict[str, Tensor]]:
    """-> (steps done, wall and CPU seconds so far, tensors). InputError if it is of another deck or data."""
    with hdf5.reading(path) as file:
        hdf5.check_format(file, FORMAT)
        require(
            hdf5.text(file, "deck") == digest,
            f"{path} is a checkpoint of another deck, model or data; give another output.path, or train.resume=false"
            " to discard it",
        )
        checksum.require_whole(file, "give another output.path, or train.resume=false to discard it")
        group = hdf5.group(file, "state")
        tensors = {name: torch.from_numpy(np.array(item)) for name, item in group.items()}
        times = hdf5.number(file, "wall_s"), hdf5.number(file, "cpu_s")
        return hdf5.integer(file, "step"), *times, tensors
