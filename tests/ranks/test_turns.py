"""What is left out at one number of ranks is tried at the next."""

from itertools import pairwise, product

import pytest

from helpers.turns import RANKS, chosen


@pytest.mark.parametrize("lengths", [(2, 2), (6, 10), (2, 7, 2, 3)])
def test_no_combination_and_no_pair_is_lost(lengths):
    axes = [[f"{axis}{i}" for i in range(n)] for axis, n in enumerate(lengths)]
    for size, after in pairwise(RANKS):
        one, other = chosen(size, *axes), chosen(after, *axes)
        assert sorted(one + other) == sorted(product(*axes))
        for found in (one, other):  # every value, and of three axes or more every pair of values
            n = min(len(axes) - 1, 2)
            for some in ([0, 1], [0, len(axes) - 1], [1, len(axes) - 1]):
                picked = {tuple(each[i] for i in some[:n]) for each in found}
                assert picked == set(product(*(axes[i] for i in some[:n])))
