"""Products of parameters that take turns at the numbers of ranks."""

from itertools import product

import pytest
from mpi4py import MPI

#: numbers of ranks that tests/run.sh starts
RANKS = (1, 2, 3, 4, 8)


def chosen(size, *axes):
    """Of all combinations of the axes' values every other one, and at the next number of ranks those between."""
    turn = RANKS.index(size) if size in RANKS else size
    return [
        tuple(value for _, value in one)
        for one in product(*(list(enumerate(axis)) for axis in axes))
        if (turn + sum(i for i, _ in one)) % 2 == 0
    ]


def by_turns(names, *axes):
    """As `pytest.mark.parametrize` of each axis, but half of the product at a time: 2 and 3 ranks see all of it."""
    return pytest.mark.parametrize(names, chosen(MPI.COMM_WORLD.size, *axes))
