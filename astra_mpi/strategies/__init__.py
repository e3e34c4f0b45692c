"""Strategies: what a rank owns and what it exchanges. One file each."""

from astra_mpi.strategies.astra import Astra
from astra_mpi.strategies.single import Single
from astra_mpi.strategies.sp import SequenceParallel

STRATEGIES = {strategy.name: strategy for strategy in (Single, SequenceParallel, Astra)}

__all__ = ["STRATEGIES", "Astra", "SequenceParallel", "Single"]
