"""How far ranks may be from the oracle, from the type of their products (docs/explanation/compute.md)."""

from __future__ import annotations

from typing import NamedTuple

from astra_mpi.oracle.narrow import NARROW

#: half a unit in the last place of each type's factors, relative to the largest number that is rounded with them:
#: bfloat16 has 8 bits, each number its own exponent; int8 steps are 1/127 of the largest of a row or column
_ROUNDING = {"bfloat16": 2.0**-9, "int8": 1 / 254}


class Tolerance(NamedTuple):
    """What is accepted, over the largest magnitude of the answer."""

    difference: float  # the largest one
    mean: float  # the mean over all numbers
    gap: float  # excess of a code's squared distance over the best one's, relative to the squared norm


#: of float32 sums over a few thousand terms
FLOAT32 = Tolerance(2e-4, 2e-4, 1e-4)


def tolerance_of(compute: str, n_layers: int) -> Tolerance:
    """float32: the same for every model. In a narrow type the least that is accepted of any row; what roundings make of
    each is measured (`spread.py`). Ranks and oracle round numbers that differ in the last bits of float32 or float64: a
    few fall on two sides of a tie, and after some products most of the roundings are others. Each of a block's two sums
    adds some of that, independent of the others, so it grows as the root of their number.
    """
    compute = compute.split()[0]
    if compute not in NARROW:
        return FLOAT32
    grown = _ROUNDING[compute] * (2 * n_layers) ** 0.5
    return Tolerance(*(exact + grown for exact in FLOAT32))
