"""Threads that compute one token together."""

from numba import njit


@njit
def meet(team, index, count):
    """Wait until all threads of the team are here."""
