"""Which blocks each stage has: evenly, as given, or by the measured speed and the free memory of its ranks."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.costs.stages import block_weights, ends_of, outside_weights
from astra_mpi.costs.types import weight_bytes
from astra_mpi.costs.work import shape_of
from astra_mpi.device.backend import get_backend
from astra_mpi.network.clock import WallClock
from astra_mpi.partition import even, split_blocks
from astra_mpi.planner.inputs import read_outline, read_storage
from astra_mpi.planner.job_grid import available_bytes
from astra_mpi.planner.probes import gemm_speeds
from astra_mpi.ranks.grid import Groups
from astra_mpi.stages.part import Part, is_tied, parts_of

Stages = Sequence[int] | str | None
_PROBED_TOKENS = 128
#: measurements in turns, of which the best of each rank counts, and how much sooner an uneven cut must be: who shares a
#: machine makes a single one wrong by a third
_PROBES, _SOONER = 8, 1.15


def check_stages(stages: Stages, n_stages: int) -> None:
    """InputError on a cut that is none."""
    if stages is None or isinstance(stages, str):
        require(stages in (None, "auto", "even"), f"stages '{stages}': use auto, even, or the blocks of each stage")
        return
    fits = len(stages) == n_stages and all(type(n) is int and n >= 1 for n in stages)
    require(fits, f"stages {list(stages)}: give {n_stages} numbers of blocks, each at least 1")


def cut_stages(path: str, groups: Groups, stages: Stages, clock: WallClock, compute: str) -> list[Part]:
    """Collective: the same on all ranks. stages: "even", blocks of each stage, or by speed and memory (None, "auto").

    InputError where there are fewer blocks than stages, or no room for all.
    """
    config, _ = read_outline(path)
    n, n_layers = groups.grid.stages, config.n_layers
    require(n_layers >= n, f"{path} has {n_layers} blocks, and the grid {groups.grid} {n} stages; give fewer stages")
    last = 0 if is_tied(config) else n - 1  # the words are there already
    if stages is not None and not isinstance(stages, str):
        total = sum(stages)
        require(total == n_layers, f"stages {list(stages)} are {total} blocks, and {path} has {n_layers}")
        return parts_of(list(stages), last)
    if stages == "even":
        return parts_of([int(k) for k in even(n_layers, n)], last)
    speeds, room = _of_stages(config, groups, clock)
    each, number = _bytes(path, config, compute)
    for head in dict.fromkeys((last, 0, n - 1)):
        free = room - number * np.array(outside_weights(ends_of(config), n, head))
        most = [int(max(0.0, bytes_) // each) for bytes_ in free]
        counts = split_blocks(n_layers, levelled(n_layers, speeds), most)
        if counts is not None:
            return parts_of(_none_empty(counts), head)
    needed = each * n_layers / 1e9
    require(False, f"{path}: its blocks need {needed:.3g} GB, more than the {n} stages have free; take more ranks")
    return []


def _of_stages(config: Any, groups: Groups, clock: WallClock) -> tuple[list[float], np.ndarray]:
    """Collective: speeds of the stages, each as fast as its slowest rank, and the bytes that each rank of one has; of
    replicas together, so that all are cut alike."""
    world, grid = groups.world, groups.grid
    probe = SimpleNamespace(config=config, backend=get_backend("numpy", world), clock=clock, comm=world)
    every = [gemm_speeds(probe, _PROBED_TOKENS) for _ in range(_PROBES)]  # type: ignore[arg-type]
    fast = np.max(every, axis=0).reshape(grid)
    free = np.array(available_bytes(world)).reshape(grid)
    return [float(speed) for speed in fast.min(axis=2).mean(axis=0)], free.min(axis=(0, 2))


def levelled(n_blocks: int, speeds: list[float]) -> list[float]:
    """The speeds, or equal ones where an uneven cut would be hardly sooner."""

    def slowest(counts: list[int]) -> float:
        return max(count / speed for count, speed in zip(counts, speeds, strict=True))

    equal = [1.0] * len(speeds)
    cuts = [split_blocks(n_blocks, of) or [] for of in (equal, speeds)]
    return speeds if slowest(cuts[0]) > _SOONER * slowest(cuts[1]) else equal


def _bytes(path: str, config: Any, compute: str) -> tuple[float, float]:
    """Of a block, and of a weight outside of the blocks."""
    number = weight_bytes(read_storage(path), compute)
    return number * block_weights(shape_of(config)), number


def _none_empty(counts: list[int]) -> list[int]:
    """Every stage has a block, from those that have most."""
    counts = list(counts)
    for s, count in enumerate(counts):
        if count == 0:
            counts[counts.index(max(counts))] -= 1
            counts[s] = 1
    return counts
