"""Everything on rank 0: the baseline that every other strategy is held against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astra_mpi.partition import Layout, cut
from astra_mpi.strategies.base import TokenParallel


class Single(TokenParallel):
    """Rank 0 owns all tokens; the other ranks only receive the answer."""

    name = "single"

    def layout(self, lengths: np.ndarray, n_class: int, causal: bool, weights: Sequence[float] | None) -> Layout:
        """All content tokens on rank 0, whatever `weights` say."""
        size = self.exchange.size
        alone = [1.0] + [0.0] * (size - 1)
        return Layout(cut(lengths, size, alone), self.exchange.rank, n_class, causal, replicas=1)
