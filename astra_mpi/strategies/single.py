"""Everything on rank 0: the baseline that every other strategy is held against."""

from __future__ import annotations

import numpy as np

from astra_mpi.layout import Layout
from astra_mpi.partition import Cut
from astra_mpi.strategies.base import on_rank_0
from astra_mpi.strategies.token_parallel import TokenParallel


class Single(TokenParallel):
    """Rank 0 owns all tokens; the other ranks only receive the answer."""

    name = "single"

    def layout(self, lengths: np.ndarray, n_class: int, causal: bool, weights: Cut, spread: bool = False) -> Layout:
        """All content tokens on rank 0, whatever `weights` say."""
        return on_rank_0(lengths, self.exchange, n_class, causal)
