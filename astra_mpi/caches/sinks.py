"""The first tokens of a conversation, computed once more by a rank that does not keep them."""

from __future__ import annotations

import numpy as np

from astra_mpi.caches.cache import HostCache
from astra_mpi.caches.past import Past
from astra_mpi.caches.rows import rows_of
from astra_mpi.layout import Layout


class Sinks(HostCache):
    """Hands what a pass over the sinks is to keep to the `past` of a conversation, which takes the missing ones."""

    def __init__(self, past: Past) -> None:
        nothing, zeros = Layout(np.zeros((1, 1), np.int64), 0), np.zeros(1, np.int64)
        super().__init__(past.kernels, past.config, nothing, zeros, np.zeros(1), False, zeros)
        self.past, self.missing = past, past.missing_sinks()

    def keep_own(self, i: int, kv: np.ndarray, places: np.ndarray | None) -> None:
        kept = rows_of(self.config, kv[self.missing.start :], None, self.kernels)
        self.past.add(i, self.past.chunks[0], kept)
