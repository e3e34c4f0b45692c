"""The ranks of a job as a grid: replicas that compute different sequences, each of stages of blocks, each of ranks that
share tokens (docs/explanation/grid.md). The communicators are derived here, once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from astra_mpi.errors import InputError

if TYPE_CHECKING:
    from mpi4py import MPI


class Grid(NamedTuple):
    """How many there are of each. Rank (r, s, t) is number (r * stages + s) * tokens + t."""

    replicas: int
    stages: int
    tokens: int

    def __str__(self) -> str:
        return "x".join(map(str, self))

    @property
    def size(self) -> int:
        return self.replicas * self.stages * self.tokens

    @property
    def whole(self) -> bool:
        """Whether all ranks share the tokens of every sequence."""
        return self.replicas == self.stages == 1

    def place(self, rank: int) -> tuple[int, int, int]:
        """Replica, stage and token place of a rank."""
        group, token = divmod(rank, self.tokens)
        return (*divmod(group, self.stages), token)

    def ranks_of(self, replica: int) -> range:
        """The ranks of a replica."""
        n = self.stages * self.tokens
        return range(replica * n, (replica + 1) * n)


def parse_grid(text: str | None, size: int) -> Grid:
    """`text` such as 2x1x4 for `size` ranks; None: all ranks share tokens. InputError where it does not fit."""
    if text is None:
        return Grid(1, 1, size)
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})x(\d{1,6})", text)
    if found is None or not all(map(int, found.groups())):
        raise InputError(f"grid '{text}' is not of the form replicas x stages x tokens, such as 2x1x4")
    grid = Grid(*map(int, found.groups()))
    if grid.size != size:
        raise InputError(
            f"grid {grid} is of {grid.size} ranks, and here are {size}; start so many, or give another grid"
        )
    return grid


@dataclass(frozen=True, eq=False)
class Groups:
    """This rank's place in a grid, and whom it works with. All under the watchdog of `world`, if that has one."""

    grid: Grid
    world: MPI.Comm
    replica: MPI.Comm  # the ranks that compute the same sequences, stage after stage
    tokens: MPI.Comm  # of these the ranks that hold the same blocks
    across: MPI.Comm  # the ranks in the same place of every replica

    @cached_property
    def place(self) -> tuple[int, int, int]:
        """Replica, stage and token place of this rank."""
        return self.grid.place(self.world.Get_rank())


def make_groups(world: MPI.Comm, grid: Grid) -> Groups:
    """Collective: the communicators of a grid, made once and kept with `world`."""
    from astra_mpi.ranks.watched import also_watched

    key = _key()
    known = world.Get_attr(key)
    if not isinstance(known, dict):
        known = {}
        world.Set_attr(key, known)
    if grid not in known:
        replica, stage, token = grid.place(world.Get_rank())
        split = [
            (replica, stage * grid.tokens + token),
            (replica * grid.stages + stage, token),
            (stage * grid.tokens + token, replica),
        ]
        known[grid] = [world.Split(color, place) for color, place in split]
    n, rank = grid.stages * grid.tokens, world.Get_rank()
    replica, place = divmod(rank, n)
    numbers = [
        grid.ranks_of(replica),
        range(rank - rank % grid.tokens, rank - rank % grid.tokens + grid.tokens),
        range(place, grid.size, n),
    ]
    return Groups(grid, world, *(also_watched(comm, world, of) for comm, of in zip(known[grid], numbers, strict=True)))


_KEYS: list[int] = []


def _key() -> int:
    """The attribute of a communicator that holds its groups; they end with it."""
    from mpi4py import MPI

    def free(comm: MPI.Comm, key: int, known: dict[Grid, list[MPI.Comm]]) -> None:
        for comms in known.values():
            for one in comms:
                one.Free()

    if not _KEYS:
        _KEYS.append(MPI.Comm.Create_keyval(delete_fn=free))
    return _KEYS[0]
